package qemu

import (
	"context"
	"fmt"
	"strings"
)

// noneMissing says that the host provides the whole CPU model.
const noneMissing = "none"

// featureWord is one register of feature bits (X86CPUFeatureWordInfo).
type featureWord struct {
	EAX      uint32  `json:"cpuid-input-eax"`
	ECX      *uint32 `json:"cpuid-input-ecx"`
	Register string  `json:"cpuid-register"`
	Features uint32  `json:"features"`
}

// missingFeatures asks the first vCPU, as which all are, what of its model it
// lacks. QEMU only warns of it, and the guest would find another processor on
// a host that provides more or less.
func (m *Machine) missingFeatures(ctx context.Context) (string, error) {
	var cpus []struct {
		Path string `json:"qom-path"`
	}
	if err := m.execute(ctx, "query-cpus-fast", nil, &cpus); err != nil {
		return "", err
	}
	if len(cpus) == 0 {
		return "", fmt.Errorf("query-cpus-fast: no vcpu")
	}
	var words []featureWord
	err := m.execute(ctx, "qom-get", map[string]string{"path": cpus[0].Path, "property": "filtered-features"}, &words)
	if err != nil {
		return "", err
	}
	return formatFeatures(words), nil
}

// formatFeatures writes the words that have bits as CPUID leaf, register, bits.
func formatFeatures(words []featureWord) string {
	var out []string
	for _, w := range words {
		if w.Features == 0 {
			continue
		}
		leaf := fmt.Sprintf("%08x", w.EAX)
		if w.ECX != nil {
			leaf += fmt.Sprintf(".%x", *w.ECX)
		}
		out = append(out, fmt.Sprintf("%s:%s=%08x", leaf, w.Register, w.Features))
	}
	if len(out) == 0 {
		return noneMissing
	}
	return strings.Join(out, " ")
}
