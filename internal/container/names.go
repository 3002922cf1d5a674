package container

import (
	"crypto/rand"
	"encoding/hex"
	"math/big"
	"regexp"
	"strings"
)

var (
	nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)
	idRule   = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// validName checks a name a client gave and takes off its leading slash.
func validName(name string) (string, error) {
	n := strings.TrimPrefix(name, "/")
	if !nameRule.MatchString(n) {
		return "", kindf(errInvalid, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	return n, nil
}

// newID makes up an id: 64 random hexadecimal digits. An id whose first twelve
// digits are all decimal is refused: as a host name it would look like a number.
func newID() ID {
	var b [32]byte
	for {
		rand.Read(b[:])
		id := hex.EncodeToString(b[:])
		if strings.ContainsAny(id[:12], "abcdef") {
			return ID(id)
		}
	}
}

// The made-up names: a word of the sea's weather and a port of call.
var (
	nameLeft  = strings.Fields("able amber ample azure balmy bold brave breezy bright brisk calm candid clear coastal cobalt coral crisp deep eager early easy fair fast fleet foggy free fresh frosty gentle golden grand green hardy hazy high inland jolly keen kind late leeward light lively long lucid lucky lunar mellow mild misty neat nimble noble northern open pale patient placid polar proud quick quiet rapid ready salty sandy serene sharp silent silver sleek smooth snowy solar solid southern spry steady stormy strong sunny swift tidal trim true vast warm watchful western wide wild windy wise young")
	nameRight = strings.Fields("aalborg accra aden agadir alexandria amalfi antibes antwerp arica bari bastia batumi beira bergen bilbao bizerte bordeaux boston brest brindisi busan cadiz calais callao cebu chania cherbourg colombo cork corfu dakar darwin dieppe djibouti dublin durban esbjerg fremantle funchal galle gdansk genoa ghent haifa halifax hamburg havana hobart honfleur horta jeddah kiel kingston kobe kotor lagos larnaca lisbon livorno lome lorient luanda macau malaga malmo malta manila maputo marseille mombasa monaco muscat nantes naples narvik nice odense odessa oran oslo ostend palermo penang piraeus porto praia quebec recife reykjavik riga rostock rouen salerno santos seattle sete setubal sfax sidon split stavanger suez sydney tallinn tampico tangier toulon trieste tromso tunis turku valencia varna vigo visby yokohama zadar")
)

// inventName makes up a free name and reserves it.
func (m creator) inventName(id ID) (string, error) {
	for range 8 {
		name := NewName()
		if m.store.reserve(name, id) == nil {
			return name, nil
		}
	}
	name := NewName() + "_" + string(id[:6])
	return name, m.store.reserve(name, id)
}

// NewName makes up a name, which others may have.
func NewName() string { return pick(nameLeft) + "_" + pick(nameRight) }

func pick(words []string) string {
	n, _ := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	return words[n.Int64()]
}
