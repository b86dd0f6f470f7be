package app

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"fermata/protocol/fault"
	"fermata/protocol/text"
)

// errorDocument is the error of a command for programs, one line of JSON. Like every
// document it may get more fields, and loses none.
type errorDocument struct {
	Error struct {
		Class      string `json:"class"`       // as in the table of exit statuses
		Message    string `json:"message"`     // what people read, hint included
		Hint       string `json:"hint"`        // what to do next; may be empty
		ExitStatus int    `json:"exit_status"` // of the command
	} `json:"error"`
}

// writeError prints the error of a command, as the last line of what it says: in words,
// or as JSON where its result would be JSON.
func writeError(env *Env, err error) {
	if !wantsJSON(env.Args) {
		fmt.Fprintf(env.Stderr, "%s: %s\n", Name, oneLine(err))
		return
	}
	var d errorDocument
	d.Error.Class, d.Error.Message, d.Error.ExitStatus = fault.ClassOf(err).String(), oneLine(err), ExitCode(err)
	d.Error.Hint = text.Shown(fault.HintOf(err))
	if errors.Is(err, ErrInterrupted) {
		d.Error.Class, d.Error.Hint = "interrupted", ""
	}
	var line bytes.Buffer
	enc := json.NewEncoder(&line)
	enc.SetEscapeHTML(false) // it is no web page
	if encErr := enc.Encode(d); encErr != nil {
		fmt.Fprintf(env.Stderr, "%s: %s\n", Name, oneLine(err)) // in words rather than not at all
		return
	}
	env.Stderr.Write(line.Bytes()) // whoever does not read it learns the status
}

// wantsJSON looks for -o json among the arguments themselves: an error of the command
// line has no parsed flags.
func wantsJSON(args []string) bool {
	wants := false
	for i, a := range args {
		value, given := "", true
		switch {
		case a == "--":
			return wants
		case (a == "-o" || a == "--output") && i+1 < len(args):
			value = args[i+1]
		case strings.HasPrefix(a, "--output="):
			value = strings.TrimPrefix(a, "--output=")
		case strings.HasPrefix(a, "-o") && !strings.HasPrefix(a, "--"):
			value = strings.TrimPrefix(strings.TrimPrefix(a, "-o"), "=")
		default:
			given = false
		}
		if given {
			wants = value == "json"
		}
	}
	return wants
}
