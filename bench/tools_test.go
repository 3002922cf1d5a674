package main

import (
	"strings"
	"testing"
)

func TestKnownTools(t *testing.T) {
	const good = "Running 1s test @ http://127.0.0.1:80/\n  2 threads and 16 connections\n  23871 requests in 1.10s, 2.71MB read\nRequests/sec:  21702.31\nTransfer/sec:      2.46MB\n"
	for _, c := range []struct {
		read      func([]byte) (float64, error)
		out, fail string
		want      float64
	}{
		{wrkRate, good, "", 21702.31},
		{wrkRate, strings.Replace(good, "Transfer", "Non-2xx or 3xx responses: 3\nTransfer", 1), "Non-2xx", 0},
		{wrkRate, strings.Replace(good, "Requests/sec", "  Socket errors: connect 0, read 4, write 0, timeout 0\nRequests/sec", 1), "Socket errors", 0},
		{wrkRate, "unable to connect", "unable to connect", 0},
		{iperfRate, `{"end":{"sum_sent":{"bits_per_second":9e9},"sum_received":{"bits_per_second":8e9}}}`, "", 1000},
		{iperfRate, `{"end":{},"error":"unable to connect to server"}`, "unable to connect to server", 0},
		{iperfRate, `{"end":{}}`, "received nothing", 0},
		{iperfRate, "", "unexpected end", 0},
	} {
		got, err := c.read([]byte(c.out))
		if got != c.want || (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
			t.Errorf("%.40q: %v, %v; want %v, %q", c.out, got, err, c.want, c.fail)
		}
	}
}
