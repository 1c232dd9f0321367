// Package localca is a certificate authority of this host's own, for the names below one domain: who trusts it reaches
// sandboxes over TLS by their host names, with no other host and no public name involved. It can certify nothing else,
// so that its key is worth little to a thief.
package localca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
)

const (
	certFile = "ca.pem"
	keyFile  = "ca-key.pem"

	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 90 * 24 * time.Hour
	renew    = 30 * 24 * time.Hour // a certificate with less left is replaced
	skew     = time.Hour           // clocks that are wrong by less do not matter
	maxFile  = 64 << 10
)

// CA is an authority for one domain. It may be used concurrently.
type CA struct {
	path   string
	pem    []byte
	cert   *x509.Certificate
	key    crypto.Signer
	domain string
	now    func() time.Time

	mu   sync.Mutex
	leaf *tls.Certificate // guarded by mu
}

// Open returns the authority for a domain whose files lie below dir, and makes it if there is none: once, whoever else
// does the same. It is good for ten years.
func Open(dir, domain string) (*CA, error) {
	c := &CA{domain: domain, now: time.Now}
	own := filepath.Join(dir, domain)
	c.path = filepath.Join(own, certFile)
	err := c.load(own)
	if errors.Is(err, fs.ErrNotExist) {
		if err = create(dir, own, domain, time.Now()); err == nil {
			err = c.load(own)
		}
	}
	if err != nil {
		return nil, &firebreak.Error{Kind: firebreak.KindHost, Op: "open certificate authority", Err: err,
			Mend: "remove " + own + " to have another made, which clients have to trust anew"}
	}
	return c, nil
}

// Path returns where the authority's certificate lies.
func (c *CA) Path() string { return c.path }

// PEM returns the authority's certificate, which is no secret.
func (c *CA) PEM() []byte { return bytes.Clone(c.pem) }

// Certificate returns the certificate of all names of the domain, for tls.Config. It is made when it is needed, renewed
// long before it ends, and its key is in memory only.
func (c *CA) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := c.now(); c.leaf == nil || now.Add(renew).After(c.leaf.Leaf.NotAfter) && c.leaf.Leaf.NotAfter.Before(c.cert.NotAfter) {
		leaf, err := c.issue(now)
		if err != nil {
			return nil, fmt.Errorf("make certificate: %w", err)
		}
		c.leaf = leaf
	}
	return c.leaf, nil
}

func (c *CA) issue(now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	end := now.Add(leafLife)
	if end.After(c.cert.NotAfter) {
		end = c.cert.NotAfter
	}
	tpl := &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: clip(c.domain)},
		NotBefore:    now.Add(-skew),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{c.domain, "*." + c.domain, "localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, c.cert, key.Public(), c.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der, c.cert.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

// clip keeps a common name within what the standard allows.
func clip(name string) string { return name[:min(len(name), 64)] }

func serial() *big.Int {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[0] &= 0x7f    // a number above zero, of at most 20 bytes
	return new(big.Int).SetBytes(b[:])
}

// load reads the files of an authority; fs.ErrNotExist if there is none.
func (c *CA) load(dir string) error {
	text, err := readSmall(filepath.Join(dir, certFile))
	if err != nil {
		return err
	}
	keyText, err := readSmall(filepath.Join(dir, keyFile))
	if err != nil {
		return fmt.Errorf("its key: %v", err) // not fs.ErrNotExist: a certificate without its key is no missing authority
	}
	pair, err := tls.X509KeyPair(text, keyText)
	if err != nil {
		return fmt.Errorf("%s: %w", dir, err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !pair.Leaf.IsCA {
		return fmt.Errorf("%s holds no authority", dir)
	}
	if !c.now().Before(pair.Leaf.NotAfter) {
		return fmt.Errorf("%s ended on %s", c.path, pair.Leaf.NotAfter.Format(time.DateOnly))
	}
	c.cert, c.key, c.pem = pair.Leaf, key, text
	return nil
}

func readSmall(name string) ([]byte, error) {
	fi, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if fi.Size() > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", name, maxFile)
	}
	return os.ReadFile(name)
}

// create makes the files of an authority under another name first, so that nobody sees half of it; of several that do
// so at the same time one wins.
func create(dir, own, domain string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	temp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp) // after the rename there is nothing
	cert, key, err := authority(domain, now)
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{certFile: cert, keyFile: key} {
		if err := writeSynced(filepath.Join(temp, name), text); err != nil {
			return err
		}
	}
	if err := os.Rename(temp, own); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func writeSynced(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// authority makes a certificate, which is constrained to the domain and this host, and its key.
func authority(domain string, now time.Time) (cert, key []byte, err error) {
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	host, _ := os.Hostname() // it is for people only
	tpl := &x509.Certificate{
		SerialNumber:                serial(),
		Subject:                     pkix.Name{CommonName: clip("Firebreak of " + host + " for " + domain)},
		NotBefore:                   now.Add(-skew),
		NotAfter:                    now.Add(caLife),
		KeyUsage:                    x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		BasicConstraintsValid:       true,
		IsCA:                        true,
		MaxPathLenZero:              true,
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         []string{domain, "localhost"},
		PermittedIPRanges: []*net.IPNet{
			{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)},
			{IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)},
		},
	}
	der, err := x509.CreateCertificate(rand.Reader, tpl, tpl, signer.Public(), signer)
	if err != nil {
		return nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), nil
}
