// Command runsc is gVisor's own command line, unchanged, of the very version that firebreak carries: the peer that the
// benchmark holds firebreak to.
package main

import "gvisor.dev/gvisor/runsc/cli/maincli"

func main() { maincli.Main() }
