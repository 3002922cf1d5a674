package ship

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
)

// invalid makes an error the client's fault and leaves its words as they are.
type invalid struct{ error }

// Is makes it an ErrInvalidArgument.
func (invalid) Is(target error) bool { return target == errdefs.ErrInvalidArgument }

// Unwrap gives the error below.
func (e invalid) Unwrap() error { return e.error }

// Check refuses a driver that is not known and options that it does not have, in
// Docker's words and as ErrInvalidArgument. "none" takes any option, as in Docker.
func (k Kinds) Check(driver string, opts map[string]string) error {
	if driver == "none" {
		return nil
	}
	if err := k.check(driver, opts); err != nil {
		return invalid{err}
	}
	return nil
}

func (k Kinds) check(driver string, opts map[string]string) error {
	switch opts["mode"] {
	case "", "blocking", "non-blocking":
	default:
		return fmt.Errorf("logger: logging mode not supported: %s", opts["mode"])
	}
	if s, ok := opts["max-buffer-size"]; ok {
		if opts["mode"] != "non-blocking" {
			return fmt.Errorf("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
		}
		if _, err := units.RAMInBytes(s); err != nil {
			return fmt.Errorf("error parsing option max-buffer-size: %w", err)
		}
	}
	if err := checkCache(opts); err != nil {
		return err
	}
	kind, ok := k.find(driver)
	if !ok {
		return fmt.Errorf("logger: no log driver named '%s' is registered", driver)
	}
	own := make(map[string]string, len(opts))
	for key, v := range opts {
		if key != "mode" && key != "max-buffer-size" && !strings.HasPrefix(key, "cache-") {
			own[key] = v
		}
	}
	if err := kind.Check(own); err != nil {
		return err
	}
	return checkAttributes(own)
}

// checkCache looks at the options of the file that is kept beside a server.
func checkCache(opts map[string]string) error {
	for key, v := range opts {
		switch key {
		case "cache-disabled":
			if _, err := strconv.ParseBool(v); v != "" && err != nil {
				return fmt.Errorf("invalid value for option %s: %s", key, v)
			}
		case "cache-max-size", "cache-max-file", "cache-compress":
			if err := checkBound(strings.TrimPrefix(key, "cache-"), v); err != nil {
				return err
			}
		default:
			if strings.HasPrefix(key, "cache-") {
				return fmt.Errorf("unknown log opt '%s'", key)
			}
		}
	}
	return nil
}

// checkBound looks at a bound of the file. A size of -1 is unbounded.
func checkBound(key, v string) error {
	switch key {
	case "max-size":
		if n, err := units.FromHumanSize(v); v != "-1" && err != nil {
			return fmt.Errorf("invalid value for max-size: %s: %w", v, err)
		} else if v != "-1" && n <= 0 {
			return fmt.Errorf("invalid value for max-size: %s: max-size must be a positive number", v)
		}
	case "max-file":
		if n, err := strconv.Atoi(v); err != nil {
			return fmt.Errorf("invalid value for max-file: %s: %w", v, err)
		} else if n < 1 {
			return fmt.Errorf("invalid value for max-file: %s: max-file cannot be less than 1", v)
		}
	case "compress":
		if _, err := strconv.ParseBool(v); err != nil {
			return fmt.Errorf("invalid value for compress: %s: %w", v, err)
		}
	}
	return nil
}

func checkJSONFile(opts map[string]string) error {
	for key, v := range opts {
		switch key {
		case "max-size", "max-file", "compress":
			if err := checkBound(key, v); err != nil {
				return err
			}
		default:
			if !Attribute(key) {
				return errUnknown(key, "json-file")
			}
		}
	}
	_, sized := opts["max-size"]
	on, _ := strconv.ParseBool(opts["compress"]) // checked above
	if files, counted := opts["max-file"]; on && (counted && files == "1" || sized && !counted || opts["max-size"] == "-1") {
		return fmt.Errorf("compress cannot be true when max-file is less than 2 or max-size is not set")
	}
	return nil
}

func checkLocal(opts map[string]string) error {
	for key, v := range opts {
		switch key {
		case "max-size", "max-file", "compress":
			if err := checkBound(key, v); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown log opt '%s' for log driver local", key)
		}
	}
	return nil
}

// Attribute reports whether an option is one of those with which most drivers add
// to what they send: labels, variables and a tag.
func Attribute(key string) bool {
	switch key {
	case "labels", "labels-regex", "env", "env-regex", "tag":
		return true
	}
	return false
}

// checkAttributes refuses patterns and tags that cannot be read.
func checkAttributes(opts map[string]string) error {
	for _, key := range []string{"labels-regex", "env-regex"} {
		if _, err := regexp.Compile(opts[key]); err != nil {
			return fmt.Errorf("invalid value for %s: %w", key, err)
		}
	}
	// With a made-up container, so that fields nobody knows are told at create.
	sample := Info{Config: opts, ContainerID: strings.Repeat("0", 64), ContainerImageID: "sha256:" + strings.Repeat("0", 64)}
	_, err := sample.Tag("")
	return err
}
