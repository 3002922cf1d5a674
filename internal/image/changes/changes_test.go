package changes

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestApply holds what Docker answered to the same instructions.
func TestApply(t *testing.T) {
	for _, tc := range []struct {
		in   []string
		want string // JSON of the configuration
	}{
		{[]string{`CMD ["a","b"]`}, `{"Cmd":["a","b"]}`},
		{[]string{`CMD a "b c" $X`}, `{"Cmd":["/bin/sh","-c","a \"b c\" $X"]}`},
		{[]string{`CMD`}, `{"Cmd":["/bin/sh","-c"]}`},
		{[]string{`CMD [ "a" `}, `{"Cmd":["/bin/sh","-c","[ \"a\""]}`},
		{[]string{`cmd ls`}, `{"Cmd":["/bin/sh","-c","ls"]}`},
		{[]string{`CMD []`}, `{}`},
		{[]string{`ENTRYPOINT ["e"]`, `CMD x`}, `{"Entrypoint":["e"],"Cmd":["/bin/sh","-c","x"]}`},
		{[]string{`CMD x`, `ENTRYPOINT e`}, `{"Entrypoint":["/bin/sh","-c","e"],"Cmd":["/bin/sh","-c","x"]}`},
		{[]string{`ENTRYPOINT []`}, `{}`},
		{[]string{`ENTRYPOINT`}, `{}`},
		{[]string{`ENV A=b C="d e" F=g\ h`}, `{"Env":["A=b","C=d e","F=g h"]}`},
		{[]string{`ENV A b c`}, `{"Env":["A=b c"]}`},
		{[]string{`ENV A=1`, `ENV B=$A-x A=2`}, `{"Env":["A=2","B=1-x"]}`},
		{[]string{`ENV A=$$X B=\$Y C="${A}"`}, `{"Env":["A=X","B=$Y","C="]}`},
		{[]string{"ENV A=1\nENV B=2"}, `{"Env":["A=1","B=2"]}`},
		{[]string{`ENV P=/usr/lib/x.tar.gz`, `ENV A=${P#*/} B=${P##*/} C=${P%.*} D=${P%%.*} E=${P/usr/opt} F=${P//r/R} G=${P:+set} H=${N:+set} I=${N-def}`},
			`{"Env":["P=/usr/lib/x.tar.gz","A=usr/lib/x.tar.gz","B=x.tar.gz","C=/usr/lib/x.tar","D=/usr/lib/x","E=/opt/lib/x.tar.gz","F=/usR/lib/x.taR.gz","G=set","H=","I=def"]}`},
		{[]string{`EXPOSE 80 443/udp 8000-8002`}, `{"ExposedPorts":{"443/udp":{},"80/tcp":{},"8000/tcp":{},"8001/tcp":{},"8002/tcp":{}}}`},
		{[]string{`EXPOSE 127.0.0.1:80:80`}, `{"ExposedPorts":{"80/tcp":{}}}`},
		{[]string{`ENV P="80 81"`, `EXPOSE $P`}, `{"ExposedPorts":{"80/tcp":{},"81/tcp":{}},"Env":["P=80 81"]}`},
		{[]string{`USER a:b`}, `{"User":"a:b"}`},
		{[]string{`USER a b`}, `{"User":"a b"}`},
		{[]string{`USER $HOME`}, `{}`},
		{[]string{`VOLUME /a /b`}, `{"Volumes":{"/a":{},"/b":{}}}`},
		{[]string{`VOLUME ["/c d"]`}, `{"Volumes":{"/c d":{}}}`},
		{[]string{`VOLUME a b`, `VOLUME /c`}, `{"Volumes":{"/c":{},"a":{},"b":{}}}`},
		{[]string{`WORKDIR /a`, `WORKDIR b`}, `{"WorkingDir":"/a/b"}`},
		{[]string{`WORKDIR x`}, `{"WorkingDir":"/x"}`},
		{[]string{`LABEL a=b "c d"="e f"`}, `{"Labels":{"a":"b","c d":"e f"}}`},
		{[]string{`LABEL a b`}, `{"Labels":{"a":"b"}}`},
		{[]string{`LABEL a=$PATH b=${X:-def} c='$PATH'`}, `{"Labels":{"a":"","b":"def","c":"$PATH"}}`},
		{[]string{`HEALTHCHECK NONE`}, `{"Healthcheck":{"Test":["NONE"]}}`},
		{[]string{`HEALTHCHECK --interval=5s --timeout=3s --retries=2 --start-period=1s CMD curl x`},
			`{"Healthcheck":{"Test":["CMD-SHELL","curl x"],"Interval":5000000000,"Timeout":3000000000,"StartPeriod":1000000000,"Retries":2}}`},
		{[]string{`HEALTHCHECK CMD ["a","b"]`}, `{"Healthcheck":{"Test":["CMD","a","b"]}}`},
		{[]string{`STOPSIGNAL SIGKILL`}, `{"StopSignal":"SIGKILL"}`},
		{[]string{`STOPSIGNAL 9`}, `{"StopSignal":"9"}`},
		{[]string{`ONBUILD RUN x`}, `{"OnBuild":["RUN x"]}`},
		{[]string{"CMD a \\\n b"}, `{"Cmd":["/bin/sh","-c","a  b"]}`},
		{[]string{"CMD a \\\n# no\n\n b"}, `{"Cmd":["/bin/sh","-c","a  b"]}`},
	} {
		var c Config
		if err := Apply(&c, tc.in); err != nil {
			t.Errorf("%q: %v", tc.in, err)
			continue
		}
		got, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		if !same(t, string(got), tc.want) {
			t.Errorf("%q\n got %s\nwant %s", tc.in, got, tc.want)
		}
	}
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if err := json.Unmarshal([]byte(a), &x); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(b), &y); err != nil {
		t.Fatal(err)
	}
	p, _ := json.Marshal(x)
	q, _ := json.Marshal(y)
	return string(p) == string(q)
}

// TestErrors: Docker's words, kind InvalidArgument, nothing changed.
func TestErrors(t *testing.T) {
	for in, want := range map[string]string{
		`CMD ["a", 1]`:                         "when using JSON array syntax, arrays must be comprised of strings only",
		`CMD --x y`:                            "unknown flag: x",
		`ENV A`:                                "ENV must have two arguments",
		`ENV A=1 B`:                            `Syntax error - can't find = in "B". Must be of the form: name=value`,
		`ENV`:                                  "ENV requires at least one argument",
		`ENV =x`:                               "ENV names can not be blank",
		`ENV A=${X?}`:                          `failed to process "${X?}": X: is not allowed to be unset`,
		`ENV A=${X`:                            `failed to process "${X": syntax error: missing '}'`,
		`ENV A=${X:-`:                          `failed to process "${X:-": syntax error: missing '}'`,
		`ENV A="x`:                             `failed to process "\"x": unexpected end of statement while looking for matching double-quote`,
		`EXPOSE x`:                             "invalid containerPort: x",
		`EXPOSE 70000`:                         "invalid containerPort: 70000",
		`EXPOSE`:                               "EXPOSE requires at least one argument",
		`EXPOSE 80/foo`:                        "invalid proto: foo",
		`USER`:                                 "USER requires exactly one argument",
		`VOLUME`:                               "VOLUME requires at least one argument",
		`VOLUME []`:                            "VOLUME requires at least one argument",
		`VOLUME [""]`:                          "VOLUME specified can not be an empty string",
		`WORKDIR`:                              "WORKDIR requires exactly one argument",
		`LABEL a`:                              "LABEL must have two arguments",
		`LABEL`:                                "LABEL requires at least one argument",
		`LABEL =x`:                             "LABEL names can not be blank",
		`HEALTHCHECK`:                          "HEALTHCHECK requires at least one argument",
		`HEALTHCHECK --interval=1ns CMD x`:     `Interval "interval" cannot be less than 1ms`,
		`HEALTHCHECK --foo=1 CMD x`:            "unknown flag: foo",
		`HEALTHCHECK FOO x`:                    `Unknown type "FOO" in HEALTHCHECK (try CMD)`,
		`HEALTHCHECK CMD`:                      "Missing command after HEALTHCHECK CMD",
		`HEALTHCHECK NONE x`:                   "HEALTHCHECK NONE takes no arguments",
		`HEALTHCHECK --retries=-1 CMD x`:       "--retries cannot be negative (-1)",
		`HEALTHCHECK --retries=x CMD x`:        `strconv.ParseInt: parsing "x": invalid syntax`,
		`HEALTHCHECK --interval=x CMD x`:       `time: invalid duration "x"`,
		`HEALTHCHECK --interval CMD x`:         "missing a value on flag: interval",
		"STOPSIGNAL FOO":                       "invalid signal: FOO",
		`ONBUILD FROM x`:                       "FROM isn't allowed as an ONBUILD trigger",
		`ONBUILD ONBUILD x`:                    "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
		`ONBUILD`:                              "ONBUILD requires at least one argument",
		`SHELL ["a"]`:                          "SHELL is not a valid change command",
		`RUN x`:                                "RUN is not a valid change command",
		``:                                     "file with no instructions",
		`# comment`:                            "file with no instructions",
		"ENV A=1\nRUN x":                       "RUN is not a valid change command",
		"ENV A=1\nENV B=${" + `A/x}`:           `failed to process "${A/x}": syntax error: missing '/' in ${}`,
		"ENV A=" + strings.Repeat("${A:-", 99): "",
		"ENV A=xxxxxxxx\n" + strings.Repeat("ENV A=$A$A\n", 40): "",
	} {
		c := Config{}
		c.Env = []string{"OLD=1"}
		err := Apply(&c, []string{in})
		if err == nil || want != "" && err.Error() != want {
			t.Errorf("%q: got %v, want %s", in, err, want)
			continue
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: kind of %v", in, err)
		}
		if len(c.Env) != 1 || c.Labels != nil {
			t.Errorf("%q changed the configuration: %+v", in, c)
		}
	}
}

func FuzzApply(f *testing.F) {
	for _, s := range []string{
		`CMD ["a","b"]`, `ENV A=${X:-"y z"} B='q'`, `EXPOSE 1-3/udp [::1]:2:3`, `HEALTHCHECK --interval=1s CMD x`,
		"LABEL a=b \\\n# c\nc=d", `ONBUILD RUN x`, `ENV P=abc Q=${P##*b} R=${P//b/\/}`, `VOLUME ["a"`, `USER "\`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 4096 {
			return
		}
		c := Config{}
		err := Apply(&c, []string{s})
		if err != nil {
			if !errdefs.IsInvalidArgument(err) {
				t.Fatalf("%q: kind of %v", s, err)
			}
			return
		}
		for p := range c.ExposedPorts {
			if !strings.Contains(p, "/") {
				t.Fatalf("%q: port %q", s, p)
			}
		}
		for _, e := range c.Env {
			if strings.HasPrefix(e, "=") && !strings.Contains(s, "$") && !strings.Contains(s, `"`) && !strings.Contains(s, "'") && !strings.Contains(s, `\`) {
				t.Fatalf("%q: nameless %q", s, e)
			}
		}
	})
}
