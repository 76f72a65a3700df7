// SPDX-License-Identifier: Apache-2.0

// Command peers asks Google's go-sev-guest and go-tdx-guest, Go's crypto/x509 and golang.org/x/crypto/ocsp about evidence
// that our verifier judges too. For tests and benchmarks only.
//
// Standard input: one JSON request a line. "peers verify" answers each with one JSON line; "peers bench SECONDS" asks
// about each again and again for that long and answers with milliseconds per verification. Nothing is fetched:
// collateral, roots and the clock come with the request. Certificates, reports, quotes and CRLs are base64 in requests,
// chains PEM.
package main

import (
	"bufio"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"time"

	sevabi "github.com/google/go-sev-guest/abi"
	sevpb "github.com/google/go-sev-guest/proto/sevsnp"
	sevvalidate "github.com/google/go-sev-guest/validate"
	sevverify "github.com/google/go-sev-guest/verify"
	sevtrust "github.com/google/go-sev-guest/verify/trust"
	tdxvalidate "github.com/google/go-tdx-guest/validate"
	tdxverify "github.com/google/go-tdx-guest/verify"
	"github.com/google/logger"
	"golang.org/x/crypto/ocsp"
)

type request struct {
	Kind string    `json:"kind"` // snp, tdx, chain or ocsp
	Now  time.Time `json:"now"`

	// SNP. Roots: one product line to its ASK or ASVK and ARK, in this order; without them AMD's for VCEKs.
	// Without a CRL none is asked for.
	Report []byte            `json:"report"`
	Vcek   []byte            `json:"vcek"`
	Vlek   []byte            `json:"vlek"`
	Roots  map[string]string `json:"roots"`
	Crl    []byte            `json:"crl"`

	// TDX. Root: PEM; without it Intel's. Without collateral only the quote's own signatures and chain are judged.
	Quote      []byte      `json:"quote"`
	Root       string      `json:"root"`
	Collateral *collateral `json:"collateral"`

	// A chain: leaf first, DER, with Root. An OCSP response: about Chain[0], whose issuer is Chain[1].
	Chain    [][]byte `json:"chain"`
	Response []byte   `json:"response"`
}

// collateral is a QuoteCollateralV3 object as other tools write it: chains PEM, CRLs and signatures hex.
type collateral struct {
	PckCrlChain    string `json:"pck_crl_issuer_chain"`
	RootCrl        string `json:"root_ca_crl"`
	PckCrl         string `json:"pck_crl"`
	TcbChain       string `json:"tcb_info_issuer_chain"`
	TcbInfo        string `json:"tcb_info"`
	TcbSignature   string `json:"tcb_info_signature"`
	QeChain        string `json:"qe_identity_issuer_chain"`
	QeIdentity     string `json:"qe_identity"`
	QeSignature    string `json:"qe_identity_signature"`
	pckCrl         []byte
	rootCrl        []byte
	tcbInfoBody    []byte
	qeIdentityBody []byte
}

type answer struct {
	Accepted bool    `json:"accepted"`
	Error    string  `json:"error,omitempty"`
	Kind     string  `json:"kind,omitempty"`
	Runs     int     `json:"runs,omitempty"`
	Millis   float64 `json:"ms,omitempty"` // median
}

// crlOnly answers every request of go-sev-guest with the one list that there is.
type crlOnly []byte

func (list crlOnly) Get(string) ([]byte, error) { return list, nil }

func verifySnp(asked *request) error {
	report, err := sevabi.ReportToProto(asked.Report)
	if err != nil {
		return err
	}
	options := &sevverify.Options{DisableCertFetching: true, Now: asked.Now, CheckRevocations: len(asked.Crl) > 0}
	options.Getter = crlOnly(asked.Crl)
	for line, chain := range asked.Roots {
		root := sevtrust.AMDRootCertsProduct(line)
		if err := root.FromKDSCertBytes([]byte(chain)); err != nil {
			return fmt.Errorf("roots: %w", err)
		}
		options.TrustedRoots = map[string][]*sevtrust.AMDRootCerts{line: {root}}
	}
	evidence := &sevpb.Attestation{
		Report:           report,
		CertificateChain: &sevpb.CertificateChain{VcekCert: asked.Vcek, VlekCert: asked.Vlek},
	}
	if err := sevverify.SnpAttestation(evidence, options); err != nil {
		return err
	}
	// Their "validate": key, chip and TCB belong together; what an operator may choose is left open.
	open := &sevvalidate.Options{GuestPolicy: sevabi.SnpPolicy{SMT: true, MigrateMA: true, CXLAllowed: true}}
	return sevvalidate.SnpAttestation(evidence, open)
}

// Get answers go-tdx-guest as Intel's service would, out of the collateral at hand.
func (given *collateral) Get(asked string) (map[string][]string, []byte, error) {
	header := func(name, chain string) map[string][]string {
		return map[string][]string{name: {url.QueryEscape(chain)}}
	}
	switch {
	case strings.Contains(asked, "/pckcrl"):
		return header("Sgx-Pck-Crl-Issuer-Chain", given.PckCrlChain), given.pckCrl, nil
	case strings.Contains(asked, "/tcb?"):
		return header("Tcb-Info-Issuer-Chain", given.TcbChain), given.tcbInfoBody, nil
	case strings.Contains(asked, "/qe/identity"):
		return header("Sgx-Enclave-Identity-Issuer-Chain", given.QeChain), given.qeIdentityBody, nil
	default:
		return nil, given.rootCrl, nil
	}
}

func (given *collateral) decode() error {
	var errs [2]error
	given.pckCrl, errs[0] = hex.DecodeString(given.PckCrl)
	given.rootCrl, errs[1] = hex.DecodeString(given.RootCrl)
	signed := func(name, body, signature string) []byte {
		return []byte(fmt.Sprintf(`{%q:%s,"signature":%q}`, name, body, signature))
	}
	given.tcbInfoBody = signed("tcbInfo", given.TcbInfo, given.TcbSignature)
	given.qeIdentityBody = signed("enclaveIdentity", given.QeIdentity, given.QeSignature)
	return errors.Join(errs[:]...)
}

func verifyTdx(asked *request) error {
	options := &tdxverify.Options{Now: asked.Now}
	if asked.Root != "" {
		options.TrustedRoots = x509.NewCertPool()
		if !options.TrustedRoots.AppendCertsFromPEM([]byte(asked.Root)) {
			return errors.New("root: no certificate")
		}
	}
	if asked.Collateral != nil {
		if err := asked.Collateral.decode(); err != nil {
			return fmt.Errorf("collateral: %w", err)
		}
		options.GetCollateral, options.CheckRevocations, options.Getter = true, true, asked.Collateral
	}
	if err := tdxverify.RawTdxQuote(asked.Quote, options); err != nil {
		return err
	}
	return tdxvalidate.RawTdxQuote(asked.Quote, &tdxvalidate.Options{}) // XFAM and attributes; no operator's choice
}

func certificates(chain [][]byte) ([]*x509.Certificate, error) {
	var found []*x509.Certificate
	for number, der := range chain {
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", number, err)
		}
		found = append(found, certificate)
	}
	return found, nil
}

func verifyChain(asked *request) error {
	chain, err := certificates(asked.Chain)
	if err != nil {
		return err
	}
	options := x509.VerifyOptions{Roots: x509.NewCertPool(), Intermediates: x509.NewCertPool(), CurrentTime: asked.Now}
	options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	if len(chain) == 0 || !options.Roots.AppendCertsFromPEM([]byte(asked.Root)) {
		return errors.New("no certificate, or no root")
	}
	for _, certificate := range chain[1:] {
		options.Intermediates.AddCert(certificate)
	}
	_, err = chain[0].Verify(options)
	return err
}

func verifyOcsp(asked *request) error {
	chain, err := certificates(asked.Chain)
	if err != nil {
		return err
	}
	if len(chain) != 2 {
		return errors.New("a certificate and its issuer are needed")
	}
	response, err := ocsp.ParseResponseForCert(asked.Response, chain[0], chain[1])
	switch {
	case err != nil:
		return err
	case response.Status != ocsp.Good:
		return fmt.Errorf("status %d", response.Status)
	// The library leaves dates to its caller.
	case asked.Now.Before(response.ThisUpdate):
		return errors.New("not yet valid")
	case !response.NextUpdate.IsZero() && asked.Now.After(response.NextUpdate):
		return errors.New("expired")
	}
	return nil
}

func judge(asked *request) (err error) {
	defer func() {
		if broken := recover(); broken != nil {
			err = fmt.Errorf("panic: %v", broken)
		}
	}()
	switch asked.Kind {
	case "snp":
		return verifySnp(asked)
	case "tdx":
		return verifyTdx(asked)
	case "chain":
		return verifyChain(asked)
	case "ocsp":
		return verifyOcsp(asked)
	default:
		return fmt.Errorf("unknown kind %q", asked.Kind)
	}
}

func verify(asked *request) answer {
	if err := judge(asked); err != nil {
		return answer{Error: err.Error()}
	}
	return answer{Accepted: true}
}

func bench(asked *request, whole time.Duration) answer {
	found := verify(asked)
	found.Kind = asked.Kind
	var times []time.Duration
	for end := time.Now().Add(whole); len(times) < 3 || time.Now().Before(end); {
		began := time.Now()
		_ = judge(asked)
		times = append(times, time.Since(began))
	}
	sort.Slice(times, func(i, j int) bool { return times[i] < times[j] })
	found.Runs, found.Millis = len(times), float64(times[len(times)/2].Nanoseconds())/1e6
	return found
}

func run(arguments []string, answers io.Writer) error {
	var ask func(*request) answer
	switch {
	case len(arguments) == 1 && arguments[0] == "verify":
		ask = verify
	case len(arguments) == 2 && arguments[0] == "bench":
		seconds, err := strconv.ParseFloat(arguments[1], 64)
		if err != nil || seconds <= 0 || seconds > 60 {
			return fmt.Errorf("%q is not a number of seconds up to 60", arguments[1])
		}
		ask = func(asked *request) answer { return bench(asked, time.Duration(seconds*float64(time.Second))) }
	default:
		return errors.New("usage: peers verify | peers bench SECONDS, with requests on standard input")
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 16<<20)
	out := bufio.NewWriter(answers)
	encoder := json.NewEncoder(out)
	for number := 1; lines.Scan(); number++ {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			return fmt.Errorf("line %d: %w", number, err)
		}
		if err := encoder.Encode(ask(&asked)); err != nil {
			return err
		}
	}
	return errors.Join(lines.Err(), out.Flush())
}

func main() {
	// go-tdx-guest logs warnings to standard output, where our answers belong: keep a second handle, close theirs.
	handle, err := syscall.Dup(1)
	if err == nil {
		logger.Close()
		err = run(os.Args[1:], os.NewFile(uintptr(handle), "answers"))
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "peers: %v\n", err)
		os.Exit(1)
	}
}
