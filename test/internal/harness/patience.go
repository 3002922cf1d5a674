package harness

import (
	"os"
	"strconv"
	"time"
)

// Slow says how many times slower than usual this machine is: $ESCALE_TEST_SLOW,
// which test/vm sets for tests in an emulated machine; otherwise 1.
func Slow() float64 {
	if f, err := strconv.ParseFloat(os.Getenv("ESCALE_TEST_SLOW"), 64); err == nil && f > 1 {
		return f
	}
	return 1
}

// Patience is how long to wait on this machine for what takes up to d on a usual one.
func Patience(d time.Duration) time.Duration { return time.Duration(float64(d) * Slow()) }
