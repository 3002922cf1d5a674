// Answerer is what tests of published ports run: it says who it is and who asks, by TCP on port
// 80 and by UDP on port 53, and ends as a program should that is to lose nobody.
//
// By TCP the first line is "who", or "slow N": N dots, four a second, and then the answer. The
// answer is a line with the host's name and the client's address. "answerer check" asks the one
// beside it whether it does.
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == "check" {
		c, err := net.DialTimeout("tcp", "127.0.0.1:80", time.Second)
		if err != nil {
			fmt.Fprintln(os.Stderr, "answerer:", err)
			os.Exit(1)
		}
		c.Close()
		return
	}
	name, err := os.Hostname()
	var streams net.Listener
	var datagrams net.PacketConn
	if err == nil {
		streams, err = net.Listen("tcp", ":80")
	}
	if err == nil {
		datagrams, err = net.ListenPacket("udp", ":53")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "answerer:", err)
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM)
	var open sync.WaitGroup
	go func() {
		for {
			c, err := streams.Accept()
			if err != nil {
				return
			}
			open.Go(func() { answer(c, name) })
		}
	}()
	go func() {
		b := make([]byte, 1500)
		for {
			_, from, err := datagrams.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(writer{datagrams, from}, "%s %s\n", name, host(from)) // who does not hear asks again
		}
	}()
	<-end
	time.Sleep(time.Second) // for those who were sent here before it was known
	streams.Close()
	datagrams.Close()
	open.Wait()
}

func answer(c net.Conn, name string) {
	defer c.Close()
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	if n, ok := strings.CutPrefix(strings.TrimSpace(line), "slow "); ok {
		dots, _ := strconv.Atoi(n) // none of what is no number
		for range dots {
			fmt.Fprint(c, ".")
			time.Sleep(250 * time.Millisecond)
		}
	}
	fmt.Fprintf(c, "%s %s\n", name, host(c.RemoteAddr()))
}

func host(a net.Addr) string {
	h, _, err := net.SplitHostPort(a.String())
	if err != nil {
		return a.String()
	}
	return h
}

// writer writes to one who has asked.
type writer struct {
	net.PacketConn
	to net.Addr
}

func (w writer) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }
