package remote

import (
	"errors"
	"io/fs"
	"strings"

	"fermata/protocol/fault"
)

// Explain says in the operator's words why a coordinator could not be spoken to. gRPC
// and TLS tell it in theirs. Another error stays as it is.
func (t Target) Explain(err error) error {
	if err == nil {
		return nil
	}
	plain, said := Plain(err), err.Error()
	at := "the coordinator at " + strings.Join(t.Addresses, ", ")
	has := func(words ...string) bool {
		for _, w := range words {
			if strings.Contains(said, w) {
				return true
			}
		}
		return false
	}
	switch {
	case t.Plaintext && has("error reading server preface"):
		return fault.WithHint(fault.New(fault.Invalid, "%s wants certificates, and --plaintext does without", at),
			"leave --plaintext out, and name the certificates with --cert, --key and --ca, or a lab with --lab")
	case has("first record does not look like a TLS handshake"):
		return fault.WithHint(fault.New(fault.Invalid, "%s serves without certificates", at), "add --plaintext")
	case has("x509: certificate signed by unknown authority", "x509: certificate is"):
		return fault.WithHint(fault.New(fault.Denied, "%s shows a certificate that %s does not vouch for (%w)", at, t.Files.CA, plain),
			"name the authority of this installation with --ca")
	case has("remote error: tls: "):
		return fault.WithHint(fault.New(fault.Denied, "%s refuses the certificate %s (%w)", at, t.Files.Cert, plain),
			"use an operator's certificate of this installation that has not expired: fermata certs issue --role operator --name NAME")
	case fault.ClassOf(err) == fault.Unavailable && has("Error while dialing"):
		return fault.WithHint(fault.New(fault.Unavailable, "cannot reach %s: %w", at, plain),
			"start it there, or name another with --coordinator or --lab")
	}
	return plain
}

// missing explains that there is no certificate where one was looked for.
func (t Target) missing(err error) error {
	var path *fs.PathError
	if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &path) {
		return fault.Wrap(fault.Denied, err, "")
	}
	return fault.WithHint(fault.New(fault.Denied, "no operator's certificate: %s does not exist", path.Path),
		"name one with --cert, --key and --ca, or a lab with --lab; make one with fermata certs issue --role operator --name NAME")
}
