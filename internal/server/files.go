package server

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"
)

// lookEvery is how often, at the most, the files of a certificate are looked at.
const lookEvery = time.Second

// CertificateFiles is a certificate that is read again when its files have changed: whoever renews it need not tell.
// What cannot be read then leaves the one before in force. It may be used concurrently.
type CertificateFiles struct {
	cert, key string
	log       *slog.Logger

	mu      sync.Mutex
	current *tls.Certificate // guarded by mu
	seen    [2]version       // guarded by mu; of the files, when they were last read
	looked  time.Time        // guarded by mu
}

// version tells one state of a file from another.
type version struct {
	changed time.Time
	size    int64
}

// OpenCertificate reads a certificate, with its chain, and its key.
func OpenCertificate(cert, key string, log *slog.Logger) (*CertificateFiles, error) {
	f := &CertificateFiles{cert: cert, key: key, log: log}
	seen, err := f.look()
	if err == nil {
		err = f.readLocked(seen)
	}
	if err != nil {
		return nil, fmt.Errorf("read TLS certificate: %w", err)
	}
	return f, nil
}

// Certificate is for tls.Config.
func (f *CertificateFiles) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if now.Sub(f.looked) < lookEvery {
		return f.current, nil
	}
	f.looked = now
	seen, err := f.look()
	if err == nil && seen != f.seen {
		err = f.readLocked(seen)
		f.seen = seen // what is broken is not read again and again
	}
	if err != nil {
		f.log.Warn("the changed TLS certificate cannot be used: the one before stays", "err", err)
	}
	return f.current, nil
}

func (f *CertificateFiles) look() (seen [2]version, err error) {
	for i, name := range []string{f.cert, f.key} {
		fi, err := os.Stat(name)
		if err != nil {
			return seen, err
		}
		seen[i] = version{fi.ModTime(), fi.Size()}
	}
	return seen, nil
}

func (f *CertificateFiles) readLocked(seen [2]version) error {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return err
	}
	f.current, f.seen = &pair, seen
	return nil
}
