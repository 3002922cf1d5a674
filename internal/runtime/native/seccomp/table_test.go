package seccomp

import (
	"flag"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write syscalls.txt anew")

var (
	sysConst = regexp.MustCompile(`(?m)^\s+SYS_(\w+)\s+= (\d+)$`)
	// pseudo are constants of x/sys that are no calls.
	pseudo = map[string]bool{"syscall_mask": true, "arch_specific_syscall": true}
	// ofX32 are the calls that have another number by x32 (asm/unistd_x32.h). The list is
	// closed: the kernel adds none (arch/x86/entry/syscalls/syscall_64.tbl).
	ofX32 = strings.Fields(`rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace
		rt_sigpending rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid
		set_robust_list get_robust_list vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg
		process_vm_readv process_vm_writev setsockopt getsockopt io_setup io_submit execveat preadv2 pwritev2`)
	// notX32 are calls of x86_64 alone.
	notX32 = strings.Fields(`uselib create_module get_kernel_syms query_module nfsservctl epoll_ctl_old
		epoll_wait_old vserver _sysctl get_thread_area set_thread_area`)
	// ofARM are calls that x/sys does not list: those of the architecture itself
	// (asm/unistd.h, __ARM_NR_*), and another name.
	ofARM = map[string]int32{"breakpoint": 0xf0001, "cacheflush": 0xf0002, "usr26": 0xf0003, "usr32": 0xf0004, "set_tls": 0xf0005, "get_tls": 0xf0006, "sync_file_range2": 341}
)

// TestTable compares the table with the constants that golang.org/x/sys makes of the
// kernel's headers. After an update of that module: go test -run TestTable -update.
func TestTable(t *testing.T) {
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs go: ", err)
	}
	want := tableText(t)
	if *update {
		if err := os.WriteFile("syscalls.txt", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != syscallsText {
		t.Error("syscalls.txt is not what golang.org/x/sys has: go test -run TestTable -update ./internal/runtime/native/seccomp")
	}
	if sum := crc32.ChecksumIEEE([]byte(syscallsText)); sum != syscallsSum {
		t.Errorf("syscallsSum has to be %#08x", sum)
	}
	for name, n := range map[string]numbers{
		"read": {0, 3, 0, 63, 3}, "execve": {59, 11, 520, 221, 11}, "socketcall": {-1, 102, -1, -1, -1}, "clone3": {435, 435, 435, 435, 435},
	} {
		if table()[name] != n {
			t.Errorf("%s: %v, want %v", name, table()[name], n)
		}
	}
}

func tableText(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]*numbers{}
	set := func(name string, column int, n int32) {
		if calls[name] == nil {
			calls[name] = &numbers{-1, -1, -1, -1, -1}
		}
		calls[name][column] = n
	}
	for column, goarch := range map[int]string{0: "amd64", 1: "386", 3: "arm64", 4: "arm"} {
		b, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(out)), "unix", "zsysnum_linux_"+goarch+".go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range sysConst.FindAllStringSubmatch(string(b), -1) {
			n, err := strconv.ParseInt(m[2], 10, 32)
			if err != nil {
				t.Fatal(err)
			}
			if name := strings.ToLower(m[1]); !pseudo[name] {
				set(name, column, int32(n))
				if column == 0 && !slices.Contains(notX32, name) {
					set(name, 2, int32(n))
				}
			}
		}
	}
	for i, name := range ofX32 {
		set(name, 2, 512+int32(i))
	}
	for name, n := range ofARM {
		set(name, 4, n)
	}
	var b strings.Builder
	b.WriteString("# name x86_64 x86 x32 aarch64 arm\n")
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		b.WriteString(name)
		for _, n := range calls[name] {
			if n < 0 {
				b.WriteString(" -")
			} else {
				fmt.Fprintf(&b, " %d", n)
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}
