// Command store is a very small data store that speaks the part of Redis's protocol
// (RESP) that the examples need: PING, GET, SET, INCR, DEL, RPUSH, LPOP, LRANGE, HSET,
// HGETALL. What is written is in /data/appendonly, one command a line, before it is
// answered. `store ping` asks one on this machine whether it is there, and is its health check.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"escale.dev/escale/examples/resp"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "ping" {
		if _, err := resp.One("127.0.0.1:6379", "PING"); err != nil {
			log.Fatal(err)
		}
		return
	}
	s, err := open("/data/appendonly")
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("tcp", ":6379")
	if err != nil {
		log.Fatal(err)
	}
	log.Printf("ready with %d keys", len(s.lists)+len(s.values)+len(s.maps))
	for {
		c, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go func() {
			defer c.Close()
			if err := s.serve(c); !errors.Is(err, io.EOF) {
				log.Printf("%s: %v", c.RemoteAddr(), err)
			}
		}()
	}
}

// store is what is kept.
type store struct {
	mu     sync.Mutex
	values map[string]string
	lists  map[string][]string
	maps   map[string]map[string]string
	file   *os.File
}

// open reads what an earlier store has written.
func open(path string) (*store, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	s := &store{values: map[string]string{}, lists: map[string][]string{}, maps: map[string]map[string]string{}}
	for d := json.NewDecoder(f); ; {
		var words []string
		if err := d.Decode(&words); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		s.do(words)
	}
	s.file = f
	return s, nil
}

// serve answers one client until it leaves, which is an error as any other: io.EOF.
func (s *store) serve(c net.Conn) error {
	r := bufio.NewReader(c)
	for {
		words, err := read(r)
		if err != nil {
			return err
		}
		if _, err := io.WriteString(c, s.do(words)); err != nil {
			return err
		}
	}
}

// read reads one command: an array of strings, or a line of words.
func read(r *bufio.Reader) ([]string, error) {
	line, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	line = strings.TrimRight(line, "\r\n")
	if !strings.HasPrefix(line, "*") {
		return strings.Fields(line), nil
	}
	n, err := strconv.Atoi(line[1:])
	if err != nil || n < 0 || n > 1024 {
		return nil, fmt.Errorf("a command of %q words", line[1:])
	}
	words := make([]string, n)
	for i := range words {
		head, err := r.ReadString('\n')
		if err != nil {
			return nil, err
		}
		size, err := strconv.Atoi(strings.TrimSpace(strings.TrimPrefix(head, "$")))
		if err != nil || size < 0 || size > 1<<20 {
			return nil, fmt.Errorf("a word of %q bytes", head)
		}
		b := make([]byte, size+2)
		if _, err := io.ReadFull(r, b); err != nil {
			return nil, err
		}
		words[i] = string(b[:size])
	}
	return words, nil
}

// do does one command and gives the answer.
func (s *store) do(words []string) string {
	if len(words) == 0 {
		return "-ERR no command\r\n"
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch verb := strings.ToUpper(words[0]); {
	case verb == "PING":
		return "+PONG\r\n"
	case verb == "GET" && len(words) == 2:
		if v, ok := s.values[words[1]]; ok {
			return bulk(v)
		}
		return "$-1\r\n"
	case verb == "LRANGE" && len(words) == 4: // always the whole list
		out := fmt.Sprintf("*%d\r\n", len(s.lists[words[1]]))
		for _, v := range s.lists[words[1]] {
			out += bulk(v)
		}
		return out
	case verb == "HGETALL" && len(words) == 2:
		m := s.maps[words[1]]
		out := fmt.Sprintf("*%d\r\n", 2*len(m))
		for _, k := range slices.Sorted(maps.Keys(m)) {
			out += bulk(k) + bulk(m[k])
		}
		return out
	case verb == "LPOP" && len(words) == 2 && len(s.lists[words[1]]) == 0:
		return "$-1\r\n"
	case len(words) == changes[verb]:
		return s.change(verb, words)
	}
	return "-ERR unknown command or wrong number of arguments\r\n"
}

// changes are the commands that change something, by their number of words.
var changes = map[string]int{"SET": 3, "INCR": 2, "DEL": 2, "RPUSH": 3, "LPOP": 2, "HSET": 4}

// change does what changes something; it is on the disk first.
func (s *store) change(verb string, words []string) string {
	if s.file != nil {
		b, err := json.Marshal(words)
		if err == nil {
			_, err = s.file.Write(append(b, '\n'))
		}
		if err == nil {
			err = s.file.Sync()
		}
		if err != nil {
			return "-ERR " + err.Error() + "\r\n"
		}
	}
	key := words[1]
	switch verb {
	case "SET":
		s.values[key] = words[2]
	case "INCR":
		n, err := strconv.Atoi(s.values[key])
		if err != nil && s.values[key] != "" {
			return "-ERR value is not an integer\r\n"
		}
		s.values[key] = strconv.Itoa(n + 1)
		return ":" + s.values[key] + "\r\n"
	case "DEL":
		delete(s.values, key)
		delete(s.lists, key)
		delete(s.maps, key)
	case "LPOP":
		first := s.lists[key][0]
		s.lists[key] = s.lists[key][1:]
		return bulk(first)
	case "HSET":
		if s.maps[key] == nil {
			s.maps[key] = map[string]string{}
		}
		s.maps[key][words[2]] = words[3]
	case "RPUSH":
		s.lists[key] = append(s.lists[key], words[2])
		return fmt.Sprintf(":%d\r\n", len(s.lists[key]))
	}
	return "+OK\r\n"
}

func bulk(v string) string { return fmt.Sprintf("$%d\r\n%s\r\n", len(v), v) }
