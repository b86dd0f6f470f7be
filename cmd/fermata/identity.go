package main

import (
	"errors"
	"io/fs"

	"fermata/protocol/fault"
	"fermata/protocol/identity"
)

// daemonIdentity loads the certificate of a daemon from the files that its configuration
// names.
func daemonIdentity(role identity.Role, name, cert, key, ca string) (*identity.Identity, error) {
	hint := "issue them with fermata certs issue --role " + string(role) + " --name " + name + ", or set plaintext: true on loopback"
	for _, f := range []struct{ key, path string }{{"certificate", cert}, {"key", key}, {"ca", ca}} {
		if f.path == "" {
			return nil, fault.WithHint(fault.New(fault.Invalid, "%s: missing; a daemon has a certificate, a key and the authority's certificate", f.key), hint)
		}
	}
	id, err := identity.Load(cert, key, ca)
	var path *fs.PathError
	if errors.Is(err, fs.ErrNotExist) && errors.As(err, &path) {
		return nil, fault.WithHint(fault.New(fault.Denied, "certificate: %s does not exist", path.Path), hint)
	}
	return id, fault.Wrap(fault.Denied, err, "")
}
