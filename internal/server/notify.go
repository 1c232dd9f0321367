package server

import (
	"context"
	"fmt"
	"net"
	"os"
)

// Manager is the service manager that started this process, if one did and wants to be told: systemd's Type=notify.
type Manager struct{ socket string }

// FindManager takes the way to the service manager out of the environment, where nothing that this process starts shall
// find it.
func FindManager() Manager {
	m := Manager{socket: os.Getenv("NOTIFY_SOCKET")}
	_ = os.Unsetenv("NOTIFY_SOCKET") // its name is well formed
	return m
}

// Ready tells that requests are answered.
func (m Manager) Ready(ctx context.Context) error { return m.tell(ctx, "READY=1") }

// Stopping tells that the end has begun.
func (m Manager) Stopping(ctx context.Context) error { return m.tell(ctx, "STOPPING=1") }

func (m Manager) tell(ctx context.Context, state string) error {
	if m.socket == "" {
		return nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixgram", m.socket)
	if err == nil {
		_, err = conn.Write([]byte(state))
		_ = conn.Close() // a datagram is sent or not
	}
	if err != nil {
		return fmt.Errorf("tell the service manager %s: %w", state, err)
	}
	return nil
}
