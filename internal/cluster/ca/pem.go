package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"fmt"

	"github.com/containerd/errdefs"
)

// NewRequest makes a key, and the request to have it signed: both PEM.
func NewRequest() (key, csr []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return nil, nil, err
	}
	key, err = encodeKey(k)
	return key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), err
}

// parseRequest gives the key that is to be signed. InvalidArgument.
func parseRequest(text []byte) (crypto.PublicKey, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("certificate request: %d bytes: %w", len(text), errdefs.ErrInvalidArgument)
	}
	b, rest := pem.Decode(text)
	if b == nil || b.Type != "CERTIFICATE REQUEST" || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("certificate request: no PEM of one: %w", errdefs.ErrInvalidArgument)
	}
	r, err := x509.ParseCertificateRequest(b.Bytes)
	if err == nil {
		err = r.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("certificate request: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch k := r.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return k, nil
	case *rsa.PublicKey:
		if k.Size() >= 256 {
			return k, nil
		}
	}
	return nil, fmt.Errorf("certificate request: ECDSA, or RSA of 2048 bits or more, is wanted: %w", errdefs.ErrInvalidArgument)
}

// parseCerts reads one or more certificates. InvalidArgument.
func parseCerts(text []byte) ([]*x509.Certificate, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("%d bytes of PEM: %w", len(text), errdefs.ErrInvalidArgument)
	}
	var out []*x509.Certificate
	for len(bytes.TrimSpace(text)) > 0 {
		b, rest := pem.Decode(text)
		if b == nil || b.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("no PEM of certificates: %w", errdefs.ErrInvalidArgument)
		}
		c, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		out, text = append(out, c), rest
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no certificate: %w", errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// parseKey reads a key to sign with. InvalidArgument.
func parseKey(text []byte) (crypto.Signer, error) {
	if len(text) > maxPEM {
		return nil, fmt.Errorf("%d bytes of PEM: %w", len(text), errdefs.ErrInvalidArgument)
	}
	b, _ := pem.Decode(text)
	for rest := text; b != nil && b.Type == "EC PARAMETERS"; { // as openssl writes
		_, rest = pem.Decode(rest)
		b, _ = pem.Decode(rest)
	}
	if b == nil {
		return nil, fmt.Errorf("no PEM of a key: %w", errdefs.ErrInvalidArgument)
	}
	var k any
	var err error
	switch b.Type {
	case "PRIVATE KEY":
		k, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		k, err = x509.ParseECPrivateKey(b.Bytes)
	case "RSA PRIVATE KEY":
		k, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	default:
		return nil, fmt.Errorf("PEM of %q is none of a key: %w", b.Type, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch k := k.(type) {
	case *ecdsa.PrivateKey:
		return k, nil
	case *rsa.PrivateKey:
		return k, nil
	}
	return nil, fmt.Errorf("%T is no key that signs here: %w", k, errdefs.ErrInvalidArgument)
}

func encodeCert(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

func encodeKey(k crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
