package cli_test

import (
	"fmt"
	"net/http"
	"time"
)

// stats sends a sample, or one each 20 ms for half a second.
func (f *fakeEngine) stats(w http.ResponseWriter, r *http.Request, c *fakeContainer) {
	n := 1
	if r.URL.Query().Get("stream") == "true" {
		n = 25
	}
	for i := range n {
		fmt.Fprintf(w, `{"id":"%s","name":"/%s","cpu_stats":{"cpu_usage":{"total_usage":%d},"system_cpu_usage":4000,"online_cpus":2},`+
			`"precpu_stats":{"cpu_usage":{"total_usage":1000},"system_cpu_usage":2000},`+
			`"memory_stats":{"usage":3145728,"limit":8388608,"stats":{"total_inactive_file":1048576}},"pids_stats":{"current":4},`+
			`"blkio_stats":{"io_service_bytes_recursive":[{"op":"Read","value":1000},{"op":"write","value":2000},{"op":"total","value":3000}]},`+
			`"networks":{"eth0":{"rx_bytes":10,"tx_bytes":20},"eth1":{"rx_bytes":1,"tx_bytes":2}}}`+"\n", c.id, c.name, 1500+i)
		if http.NewResponseController(w).Flush(); n > 1 {
			time.Sleep(20 * time.Millisecond)
		}
	}
}
