package cli

import (
	"encoding/json"
	"net/url"
	"strconv"

	"github.com/spf13/cobra"
)

// safeModeCommand shows, begins and ends the state in which the engine starts
// nothing by itself.
func safeModeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "safe-mode [on|off]",
		Short: "Show or change whether the engine starts containers by itself",
		Example: `escale system safe-mode                             # is it on, and why
escale system safe-mode off                         # restart policies go on`,
		Args:              cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs:         []string{"on", "off"},
		ValidArgsFunction: completeWords("on", "off"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				res, err := c.Do(cmd.Context(), "POST", "/escale/safe-mode", url.Values{"on": {strconv.FormatBool(args[0] == "on")}}, nil)
				if err != nil {
					return err
				}
				return res.Body.Close()
			}
			res, err := c.Do(cmd.Context(), "GET", "/escale/safe-mode", nil, nil)
			if err != nil {
				return err
			}
			defer res.Body.Close()
			var have struct {
				SafeMode bool
				Reason   string
			}
			if err := json.NewDecoder(res.Body).Decode(&have); err != nil {
				return err
			}
			if !have.SafeMode {
				a.println("off")
				return nil
			}
			a.println("on: " + have.Reason)
			return nil
		},
	}
}
