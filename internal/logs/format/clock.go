package format

// Clock is the time that goes into the next lines. It keeps the text of its
// second, since many lines fall into one. The zero value is 1970.
type Clock struct {
	sec  int64
	nsec int32
	text [len("2006-01-02T15:04:05")]byte
	set  bool
}

// Set puts the clock to a time since 1970, in seconds and nanoseconds (0 to
// 999999999).
func (c *Clock) Set(sec int64, nsec int32) {
	if sec != c.sec || !c.set {
		c.sec = sec
		c.render()
	}
	c.nsec = nsec
}

// Tick moves the clock on by one nanosecond. Lines that were read at once thus
// have times of their own, in their order: a reader can go on after the last
// time it saw and neither miss a line nor see one twice.
func (c *Clock) Tick() {
	if c.nsec < 999999999 {
		c.nsec++
		return
	}
	c.Set(c.sec+1, 0)
}

// Before says whether the clock stands before the time.
func (c *Clock) Before(sec int64, nsec int32) bool {
	return c.sec < sec || c.sec == sec && c.nsec < nsec
}

// Seconds is the clock's second since 1970.
func (c *Clock) Seconds() int64 { return c.sec }

// append writes the time with as many digits as it needs, as time.RFC3339Nano.
func (c *Clock) append(dst []byte) []byte {
	if !c.set {
		c.render()
	}
	dst = append(dst, c.text[:]...)
	if c.nsec != 0 {
		var d [10]byte
		d[0] = '.'
		n, end := c.nsec, 0
		for i := 9; i > 0; i-- {
			if n%10 != 0 && end == 0 {
				end = i + 1
			}
			d[i] = byte('0' + n%10)
			n /= 10
		}
		dst = append(dst, d[:end]...)
	}
	return append(dst, 'Z')
}

func (c *Clock) render() {
	c.set = true
	days, rest := c.sec/86400, c.sec%86400
	if rest < 0 {
		days, rest = days-1, rest+86400
	}
	y, m, d := civil(days)
	digits(c.text[0:2], y/100)
	digits(c.text[2:4], y%100)
	c.text[4] = '-'
	digits(c.text[5:7], m)
	c.text[7] = '-'
	digits(c.text[8:10], d)
	c.text[10] = 'T'
	digits(c.text[11:13], rest/3600)
	c.text[13] = ':'
	digits(c.text[14:16], rest/60%60)
	c.text[16] = ':'
	digits(c.text[17:19], rest%60)
}

func digits(dst []byte, n int64) {
	dst[0], dst[1] = byte('0'+n/10%10), byte('0'+n%10)
}

// civil is the date of a day counted from 1970-01-01, in the Gregorian
// calendar. Years are counted from March, so that the leap day is their last.
func civil(days int64) (year, month, day int64) {
	const perEra = 146097 // days in 400 years
	days += 719468        // from 0000-03-01
	era := floor(days, perEra)
	doe := days - era*perEra
	yoe := (doe - doe/1460 + doe/36524 - doe/(perEra-1)) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	day = doy - (153*mp+2)/5 + 1
	month = mp + 3
	year = yoe + era*400
	if month > 12 {
		month -= 12
		year++
	}
	return year, month, day
}

func floor(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}
