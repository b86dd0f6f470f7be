//go:build race

package roundsim_test

// raceDetector tells that memory accesses are watched. The simulator has one
// goroutine and nothing to watch, but becomes thirty times slower.
const raceDetector = true
