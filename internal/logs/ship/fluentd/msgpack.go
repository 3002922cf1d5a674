package fluentd

import (
	"encoding/binary"
	"errors"
	"math"
	"time"
)

// What of MessagePack the forward protocol needs
// (https://github.com/msgpack/msgpack/blob/master/spec.md).

func appendString(b []byte, s string) []byte {
	switch n := len(s); {
	case n < 32:
		b = append(b, 0xa0|byte(n))
	case n <= math.MaxUint8:
		b = append(b, 0xd9, byte(n))
	case n <= math.MaxUint16:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, s...)
}

func appendArray(b []byte, n int) []byte {
	if n < 16 {
		return append(b, 0x90|byte(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xdd), uint32(n))
}

func appendMap(b []byte, n int) []byte {
	if n < 16 {
		return append(b, 0x80|byte(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xdf), uint32(n))
}

func appendInt(b []byte, n int64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(n))
}

// appendTime writes seconds, or the protocol's EventTime, which has nanoseconds.
func appendTime(b []byte, t time.Time, precise bool) []byte {
	if !precise {
		return appendInt(b, t.Unix())
	}
	b = binary.BigEndian.AppendUint32(append(b, 0xd7, 0), uint32(t.Unix()))
	return binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
}

// Bounds of an answer.
const (
	maxAnswer = 4 << 10
	maxFields = 16
)

var (
	errShort  = errors.New("answer is not complete")
	errAnswer = errors.New("answer is not an acknowledgement")
)

// parseAck reads {"ack": id} from the beginning of b and returns how much of it that
// is. errShort: more is to come.
func parseAck(b []byte) (id string, n int, err error) {
	fields, n, err := head(b, 0x80, 0xf0, 0xde, 0xdf)
	if err != nil {
		return "", 0, err
	}
	if fields > maxFields {
		return "", 0, errAnswer
	}
	for range fields {
		var key, value string
		for _, s := range []*string{&key, &value} {
			text, used, err := parseString(b[n:])
			if err != nil {
				return "", 0, err
			}
			*s, n = text, n+used
		}
		if key == "ack" {
			id = value
		}
	}
	if id == "" {
		return "", 0, errAnswer
	}
	return id, n, nil
}

// parseString reads a string or binary.
func parseString(b []byte) (string, int, error) {
	size, n, err := head(b, 0xa0, 0xe0, 0xda, 0xdb)
	if errors.Is(err, errAnswer) {
		switch b[0] {
		case 0xd9, 0xc4:
			if len(b) < 2 {
				return "", 0, errShort
			}
			size, n, err = int(b[1]), 2, nil
		default:
			size, n, err = head(b, 0xc5, 0xff, 0xc5, 0xc6)
		}
	}
	if err != nil {
		return "", 0, err
	}
	if size > maxAnswer {
		return "", 0, errAnswer
	}
	if len(b) < n+size {
		return "", 0, errShort
	}
	return string(b[n : n+size]), n + size, nil
}

// head reads the size of a map or string in its small form (fixed, under mask) or
// in those with two and four bytes.
func head(b []byte, fixed, mask, two, four byte) (size, n int, err error) {
	if len(b) == 0 {
		return 0, 0, errShort
	}
	switch c := b[0]; {
	case c == two:
		if len(b) < 3 {
			return 0, 0, errShort
		}
		return int(binary.BigEndian.Uint16(b[1:])), 3, nil
	case c == four:
		if len(b) < 5 {
			return 0, 0, errShort
		}
		size := binary.BigEndian.Uint32(b[1:])
		if size > maxAnswer {
			return 0, 0, errAnswer
		}
		return int(size), 5, nil
	case c&mask == fixed:
		return int(c &^ mask), 1, nil
	}
	return 0, 0, errAnswer
}
