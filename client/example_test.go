package client_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"time"

	"github.com/firebreak-dev/firebreak/client"
)

// A function of a plugin is called with bytes, and returns bytes. The sandbox is one of a server, in which it was made from a
// template that holds the plugin, as POST /sandboxes or a tool of E2B does.
func ExampleClient_Call() {
	c := client.New("http://127.0.0.1:7070", nil, client.WithAPIKey("e2b_…"))
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	out, err := c.Call(ctx, "f3fa7b2c1", "greet", []byte("world"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		log.Print("there is no such sandbox, or no such function: ", err)
	case errors.Is(err, client.ErrTrap):
		log.Print("the plugin failed: ", err)
	case err != nil:
		log.Print(err)
	default:
		fmt.Printf("%s\n", out)
	}
}
