// Package resp asks stores that speak Redis's protocol, one command a connection.
package resp

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// ErrNone is what a store answers for a key that it does not have.
var ErrNone = errors.New("not there")

// Do sends one command to the store at an address and gives its answer, one string or
// many. It takes at most five seconds.
func Do(addr string, words ...string) ([]string, error) {
	c, err := net.DialTimeout("tcp", addr, 3*time.Second)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return nil, err
	}
	command := fmt.Sprintf("*%d\r\n", len(words))
	for _, w := range words {
		command += fmt.Sprintf("$%d\r\n%s\r\n", len(w), w)
	}
	if _, err := io.WriteString(c, command); err != nil {
		return nil, err
	}
	return answer(bufio.NewReader(c))
}

// One is Do for commands whose answer is one string.
func One(addr string, words ...string) (string, error) {
	list, err := Do(addr, words...)
	if err != nil || len(list) != 1 {
		return "", errors.Join(err, map[bool]error{true: fmt.Errorf("%d answers to %s", len(list), words[0])}[err == nil])
	}
	return list[0], nil
}

func answer(r *bufio.Reader) ([]string, error) {
	head, err := r.ReadString('\n')
	if err != nil {
		return nil, err
	}
	head = strings.TrimRight(head, "\r\n")
	if head == "" {
		return nil, io.ErrUnexpectedEOF
	}
	switch kind, rest := head[0], head[1:]; kind {
	case '-':
		return nil, errors.New(rest)
	case '+', ':':
		return []string{rest}, nil
	case '$':
		n, err := strconv.Atoi(rest)
		switch {
		case err != nil || n > 1<<20:
			return nil, fmt.Errorf("an answer of %q bytes", rest)
		case n < 0:
			return nil, ErrNone
		}
		b := make([]byte, n+2)
		_, err = io.ReadFull(r, b)
		return []string{string(b[:n])}, err
	case '*':
		n, err := strconv.Atoi(rest)
		if err != nil {
			return nil, fmt.Errorf("an answer of %q parts", rest)
		}
		var list []string
		for range n {
			part, err := answer(r)
			if err != nil {
				return nil, err
			}
			list = append(list, part...)
		}
		return list, nil
	}
	return nil, fmt.Errorf("%q is no answer", head)
}
