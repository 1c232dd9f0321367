package localca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
)

func open(t *testing.T, dir, domain string) *CA {
	t.Helper()
	c, err := Open(dir, domain)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func leaf(t *testing.T, c *CA) *x509.Certificate {
	t.Helper()
	cert, err := c.Certificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	return cert.Leaf
}

// verify asks what a client that trusts c alone thinks of a certificate.
func verify(c *CA, cert *x509.Certificate, name string, at time.Time) error {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.PEM())
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: at})
	return err
}

func TestNamesThatItCertifies(t *testing.T) {
	c := open(t, t.TempDir(), "box.lan")
	for name, want := range map[string]bool{
		"box.lan": true, "8080-abc.box.lan": true, "api.box.lan": true, "localhost": true, "127.0.0.1": true, "::1": true,
		"a.b.box.lan": false, "example.com": false, "notbox.lan": false, "10.0.0.1": false,
	} {
		if err := verify(c, leaf(t, c), name, time.Now()); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestItsKeyIsWorthLittle signs what a thief of the key would like to have.
func TestItsKeyIsWorthLittle(t *testing.T) {
	c := open(t, t.TempDir(), "box.lan")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(tpl *x509.Certificate) *x509.Certificate {
		tpl.SerialNumber, tpl.NotBefore, tpl.NotAfter = serial(), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
		tpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
		der, err := x509.CreateCertificate(rand.Reader, tpl, c.cert, key.Public(), c.key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	if err := verify(c, sign(&x509.Certificate{DNSNames: []string{"x.box.lan"}}), "x.box.lan", time.Now()); err != nil {
		t.Fatal(err) // or this tests nothing
	}
	for _, tpl := range []*x509.Certificate{{DNSNames: []string{"bank.example"}}, {IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}}} {
		name := "10.0.0.1"
		if len(tpl.DNSNames) > 0 {
			name = tpl.DNSNames[0]
		}
		if err := verify(c, sign(tpl), name, time.Now()); err == nil {
			t.Errorf("a certificate for %s is taken", name)
		}
	}
}

func TestItIsMadeOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tls")
	var all sync.WaitGroup
	certs := make([][]byte, 8)
	for i := range certs {
		all.Go(func() {
			c, err := Open(dir, "box.lan")
			if err != nil {
				t.Error(err)
				return
			}
			certs[i] = c.PEM()
		})
	}
	all.Wait()
	for _, pem := range certs[1:] {
		if !bytes.Equal(pem, certs[0]) {
			t.Error("two who opened it at the same time got two")
		}
	}
	if other := open(t, dir, "other.lan"); bytes.Equal(other.PEM(), certs[0]) {
		t.Error("two domains have one authority")
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v, %v", entries, err)
	}
	for _, file := range []string{certFile, keyFile} {
		if fi, err := os.Stat(filepath.Join(dir, "box.lan", file)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, fi, err)
		}
	}
}

func TestCertificatesAreRenewed(t *testing.T) {
	c := open(t, t.TempDir(), "box.lan")
	now := time.Now()
	c.now = func() time.Time { return now }
	first := leaf(t, c)
	for day := range 9 * 365 {
		now = now.Add(24 * time.Hour)
		cert := leaf(t, c)
		if left := cert.NotAfter.Sub(now); left < renew-time.Second {
			t.Fatalf("on day %d, %s are left", day, left)
		}
		if day == 30 && cert != first {
			t.Error("it is made anew without need")
		}
		if day%100 == 0 {
			if err := verify(c, cert, "1-a.box.lan", now); err != nil {
				t.Fatalf("on day %d: %v", day, err)
			}
		}
	}
	if leaf(t, c) == first {
		t.Error("it was never renewed")
	}
	now = first.NotBefore.Add(caLife - 24*time.Hour) // the authority's own last days
	if err := verify(c, leaf(t, c), "1-a.box.lan", now); err != nil {
		t.Error(err)
	}
}

func TestWreckedFilesAreErrors(t *testing.T) {
	for name, wreck := range map[string]func(dir string) error{
		"no key":    func(dir string) error { return os.Remove(filepath.Join(dir, keyFile)) },
		"half cert": func(dir string) error { return os.Truncate(filepath.Join(dir, certFile), 100) },
		"huge":      func(dir string) error { return os.Truncate(filepath.Join(dir, certFile), 1<<30) },
		"another key": func(dir string) error {
			_, key, err := authority("box.lan", time.Now())
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, keyFile), key, 0o600)
		},
		"no authority": func(dir string) error {
			c, err := Open(filepath.Dir(dir), filepath.Base(dir))
			if err != nil {
				return err
			}
			leaf, err := c.Certificate(nil)
			if err != nil {
				return err
			}
			key, err := x509.MarshalPKCS8PrivateKey(leaf.PrivateKey)
			if err != nil {
				return err
			}
			return write(dir, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Certificate[0]}),
				pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}))
		},
		"over": func(dir string) error {
			cert, key, err := authority("box.lan", time.Now().Add(-caLife-24*time.Hour))
			if err != nil {
				return err
			}
			return write(dir, cert, key)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			open(t, dir, "box.lan")
			if err := wreck(filepath.Join(dir, "box.lan")); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(dir, "box.lan"); firebreak.KindOf(err) != firebreak.KindHost {
				t.Errorf("%v, want an error of the host", err)
			}
		})
	}
}

func write(dir string, cert, key []byte) error {
	if err := os.WriteFile(filepath.Join(dir, certFile), cert, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, keyFile), key, 0o600)
}

// TestItServes is the whole of it over TLS.
func TestItServes(t *testing.T) {
	c := open(t, t.TempDir(), "box.lan")
	server, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: c.Certificate})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		for conn, err := server.Accept(); err == nil; conn, err = server.Accept() {
			_, _ = conn.Write([]byte("hello"))
			_ = conn.Close()
		}
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(c.PEM())
	conn, err := tls.Dial("tcp", server.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "8080-abc.box.lan"})
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if conn, err := tls.Dial("tcp", server.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "example.com"}); err == nil {
		conn.Close()
		t.Error("it is taken for example.com")
	}
}
