package changes

import (
	"strconv"
	"strings"
	"time"
	"unicode"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
)

// minInterval is the shortest time between two health checks.
const minInterval = time.Millisecond

func (s *state) healthcheck(in instruction) error {
	if in.rest == "" {
		return problemf("HEALTHCHECK requires at least one argument")
	}
	kind, rest := in.rest, ""
	if i := strings.IndexFunc(in.rest, unicode.IsSpace); i >= 0 {
		kind, rest = in.rest[:i], strings.TrimLeftFunc(in.rest[i:], unicode.IsSpace)
	}
	words, isJSON, err := jsonOrText(rest)
	if err != nil {
		return err
	}
	kind = strings.ToUpper(kind)
	if kind == "NONE" {
		if len(words) != 0 {
			return problemf("HEALTHCHECK NONE takes no arguments")
		}
		s.config.Healthcheck = &dockerspec.HealthcheckConfig{Test: []string{"NONE"}}
		return nil
	}
	flags, err := in.values([]string{"interval", "timeout", "start-period", "start-interval", "retries"})
	if err != nil {
		return err
	}
	if kind != "CMD" {
		return problemf("Unknown type %q in HEALTHCHECK (try CMD)", kind)
	}
	if len(words) == 0 {
		return problemf("Missing command after HEALTHCHECK CMD")
	}
	if !isJSON {
		kind = "CMD-SHELL"
	}
	check := &dockerspec.HealthcheckConfig{Test: append([]string{kind}, words...)}
	for _, f := range []struct {
		name string
		to   *time.Duration
	}{
		{"interval", &check.Interval}, {"timeout", &check.Timeout},
		{"start-period", &check.StartPeriod}, {"start-interval", &check.StartInterval},
	} {
		if *f.to, err = interval(f.name, flags[f.name]); err != nil {
			return err
		}
	}
	if check.Retries, err = retries(flags["retries"]); err != nil {
		return err
	}
	s.config.Healthcheck = check
	return nil
}

func interval(name, value string) (time.Duration, error) {
	if value == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0, problemf("%s", err)
	}
	if d != 0 && d < minInterval {
		return 0, problemf("Interval %q cannot be less than %s", name, minInterval)
	}
	return d, nil
}

func retries(value string) (int, error) {
	if value == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(value, 10, 32)
	if err != nil {
		return 0, problemf("%s", err)
	}
	if n < 0 {
		return 0, problemf("--retries cannot be negative (%d)", n)
	}
	return int(n), nil
}
