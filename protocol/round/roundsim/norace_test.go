//go:build !race

package roundsim_test

const raceDetector = false
