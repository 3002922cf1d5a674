package systemdtest

import "encoding/binary"

// binaryOrder is the one or the other: a client takes both.
func binaryOrder(n int) binary.ByteOrder {
	if n%3 == 1 {
		return binary.BigEndian
	}
	return binary.LittleEndian
}
