// Command worker takes votes from the queue into the database, one a voter.
package main

import (
	"encoding/json"
	"errors"
	"log"
	"time"

	"escale.dev/escale/examples/resp"
)

func main() {
	for {
		text, err := resp.One("redis:6379", "LPOP", "votes")
		if errors.Is(err, resp.ErrNone) {
			time.Sleep(100 * time.Millisecond)
			continue
		}
		var v struct {
			Voter string `json:"voter_id"`
			Vote  string `json:"vote"`
		}
		if err == nil {
			err = json.Unmarshal([]byte(text), &v)
		}
		if err != nil {
			log.Print("queue: ", err)
			time.Sleep(time.Second)
			continue
		}
		for {
			if _, err = resp.One("db:6379", "HSET", "votes", v.Voter, v.Vote); err == nil {
				break
			}
			log.Print("database: ", err) // the vote is in hand: it is tried until it is there
			time.Sleep(time.Second)
		}
		log.Printf("%s votes for %s", v.Voter, v.Vote)
	}
}
