package server

import (
	"errors"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// S3 is a bucket of S3's protocol to keep content in.
type S3 struct {
	Endpoint string // HOST[:PORT]
	Plain    bool   // without TLS
	Bucket   string
	Prefix   string // of all keys; empty, or ends in a slash
	Region   string // empty: it is asked for
	// Credentials is a file in the form of AWS's own, whose profile "default"
	// counts; empty: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY do.
	Credentials string
}

// ParseS3 reads http(s)://ENDPOINT/BUCKET[/PREFIX]. Kind: InvalidArgument.
func ParseS3(text string) (*S3, error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, invalid("registry bucket %q: want http(s)://ENDPOINT/BUCKET[/PREFIX]", redactedURL(u, text))
	}
	name, prefix, _ := strings.Cut(strings.Trim(u.Path, "/"), "/")
	if name == "" {
		return nil, invalid("registry bucket %q: no bucket is named: want http(s)://ENDPOINT/BUCKET[/PREFIX]", text)
	}
	if prefix != "" {
		prefix += "/"
	}
	return &S3{Endpoint: u.Host, Plain: u.Scheme == "http", Bucket: name, Prefix: prefix}, nil
}

// validate checks what can be told without the network.
func (c *S3) validate(insecure bool) error {
	if c.Bucket == "" {
		return invalid("registry: no bucket is named")
	}
	if host, _, _ := strings.Cut(c.Endpoint, ":"); c.Plain && !insecure && !loopback(strings.Trim(host, "[]")) && !strings.HasPrefix(c.Endpoint, "[::1]") {
		return invalid("registry bucket at %s: without TLS only loopback addresses are used; say insecure", c.Endpoint)
	}
	value, err := c.credentials().GetWithContext(nil)
	if err == nil && (value.AccessKeyID == "" || value.SecretAccessKey == "") {
		err = errors.New("there are none")
	}
	if err != nil {
		return invalid("registry bucket %s: credentials: %s; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file", c.Bucket, err)
	}
	_, err = c.client()
	return err
}

func (c *S3) credentials() *credentials.Credentials {
	if c.Credentials != "" {
		return credentials.NewFileAWSCredentials(c.Credentials, "default")
	}
	return credentials.NewEnvAWS()
}

// client makes the way to the bucket; nothing is asked yet.
func (c *S3) client() (*minio.Core, error) {
	way, err := minio.DefaultTransport(!c.Plain)
	if err != nil {
		return nil, err
	}
	way.ResponseHeaderTimeout, way.IdleConnTimeout = time.Minute, 10*time.Second
	client, err := minio.NewCore(c.Endpoint, &minio.Options{Creds: c.credentials(), Secure: !c.Plain, Region: c.Region, Transport: way, MaxRetries: 4})
	if err != nil {
		return nil, invalid("registry bucket at %s: %s", c.Endpoint, err)
	}
	return client, nil
}
