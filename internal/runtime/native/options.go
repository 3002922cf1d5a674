package native

import (
	"fmt"
	"strconv"
	"strings"
)

// options are a command's by name: true takes a value.
type options map[string]bool

// short names of options. One letter may be different options of different commands.
var short = map[string][]string{"b": {"bundle"}, "d": {"detach"}, "f": {"force", "format"}, "a": {"all"}, "p": {"process"}, "t": {"tty"}, "e": {"env"}, "u": {"user"}, "g": {"additional-gids"},
	"c": {"cap"}, "r": {"resources"}, "q": {"quiet"}, "v": {"version"}, "h": {"help"}}

// values are the options of one call; some may be given several times.
type values map[string][]string

func (v values) has(name string) bool {
	list := v[name]
	if len(list) == 0 {
		return false
	}
	b, err := strconv.ParseBool(list[len(list)-1])
	return err != nil || b
}

// refuse is for options that runc has and that would be passed over here.
func (v values) refuse(names ...string) error {
	for _, n := range names {
		if v.text(n, "") != "" {
			return fmt.Errorf("--%s: not supported", n)
		}
	}
	return nil
}

func (v values) text(name, otherwise string) string {
	if list := v[name]; len(list) > 0 {
		return list[len(list)-1]
	}
	return otherwise
}

// parse takes options apart from other arguments. inOrder: what follows the first
// other argument is not ours.
func parse(args []string, known options, inOrder bool) (values, []string, error) {
	v := values{}
	var rest []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		if a == "--" {
			return v, append(rest, args[i+1:]...), nil
		}
		if !strings.HasPrefix(a, "-") || a == "-" {
			if inOrder {
				return v, append(rest, args[i:]...), nil
			}
			rest = append(rest, a)
			continue
		}
		name, value, given := strings.Cut(strings.TrimLeft(a, "-"), "=")
		for _, long := range short[name] {
			if _, own := known[long]; own {
				name = long
			}
		}
		takes, ok := known[name]
		switch {
		case !ok:
			return nil, nil, fmt.Errorf("flag provided but not defined: %s", a)
		case given:
		case takes && i+1 == len(args):
			return nil, nil, fmt.Errorf("flag needs an argument: %s", a)
		case takes:
			i++
			value = args[i]
		default:
			value = "true"
		}
		v[name] = append(v[name], value)
	}
	return v, rest, nil
}

// one is the only other argument of a command: a container's id.
func one(words []string) (string, error) {
	if len(words) != 1 {
		return "", fmt.Errorf("the command needs exactly one argument, the container's id; got %d", len(words))
	}
	return words[0], checkID(words[0])
}

// checkID takes what runc takes, and no path.
func checkID(id string) error {
	bad := id == "" || id == "." || id == ".." || len(id) > 1024
	for _, c := range []byte(id) {
		plain := c|0x20 >= 'a' && c|0x20 <= 'z' || c >= '0' && c <= '9'
		bad = bad || !plain && !strings.ContainsRune("_+-.", rune(c))
	}
	if bad {
		return fmt.Errorf("invalid id format: %q", id)
	}
	return nil
}
