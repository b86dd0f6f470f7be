package round

import "fmt"

// Outcome is how a round ended. The repository holds the one record of it.
type Outcome uint8

const (
	OutcomeNone Outcome = iota // not decided, or not known
	Committed
	Aborted
)

// String returns the outcome's name.
func (o Outcome) String() string {
	return enumText("outcome", uint8(o), outcomeTexts...)
}

// MarshalText returns String.
func (o Outcome) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText is the inverse of MarshalText.
func (o *Outcome) UnmarshalText(text []byte) error {
	n, err := enumValue("outcome", string(text), outcomeTexts)
	*o = Outcome(n)
	return err
}

var outcomeTexts = []string{"none", "committed", "aborted"}

func enumText(kind string, n uint8, texts ...string) string {
	if int(n) >= len(texts) {
		return fmt.Sprintf("%s(%d)", kind, n)
	}
	return texts[n]
}

func enumValue(kind, text string, texts []string) (uint8, error) {
	for n, t := range texts {
		if t == text {
			return uint8(n), nil
		}
	}
	return 0, fmt.Errorf("unknown %s %q: %w", kind, text, ErrInvalid)
}
