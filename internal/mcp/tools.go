package mcp

import "crypto/rand"

const callerField = "firebreak/caller" // of a request's token, whose it is

// addTools offers all tools, in the order in which most models need them.
func (d *Door) addTools() {
	d.addCodeTools()
	d.addCommandTools()
	d.addFileTools()
	d.addSearchTool()
	d.addTransferTools()
	d.addPortTool()
	d.addSandboxTools()
}

func newToken() string { return rand.Text() }
