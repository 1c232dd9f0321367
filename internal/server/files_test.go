package server

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/localca"
)

// writePair writes a fresh certificate and its key, as of a moment.
func writePair(t *testing.T, cert, key string, at time.Time) {
	t.Helper()
	ca, err := localca.Open(t.TempDir(), "box.lan")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: pair.Certificate[0]}, key: {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

func TestChangedCertificatesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	log := &lines{}
	if _, err := OpenCertificate(cert, key, config(log).Log); err == nil {
		t.Error("files that are not there are a certificate")
	}
	writePair(t, cert, key, time.Unix(1, 0))
	f, err := OpenCertificate(cert, key, config(log).Log)
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		f.looked = time.Time{} // as if a second had passed
		c, err := f.Certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c.Leaf.SerialNumber.String()
	}
	first := serial()
	if serial() != first {
		t.Error("it changes by itself")
	}
	writePair(t, cert, key, time.Unix(2, 0))
	second := serial()
	if second == first {
		t.Error("a new certificate is not seen")
	}
	if err := os.WriteFile(key, []byte("half a k"), 0o600); err != nil { // as while it is being written
		t.Fatal(err)
	}
	for range 3 {
		if serial() != second {
			t.Error("a broken file replaced the certificate")
		}
	}
	if n := strings.Count(log.String(), "cannot be used"); n != 1 {
		t.Errorf("the log tells of a broken file %d times", n)
	}
	writePair(t, cert, key, time.Unix(3, 0))
	if got := serial(); got == second || got == first {
		t.Error("a new certificate after a broken one is not seen")
	}
	if err := os.Remove(cert); err != nil {
		t.Fatal(err)
	}
	if serial() == second {
		t.Error("a removed file brings an old certificate back")
	}
}
