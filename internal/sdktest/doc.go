// Package sdktest runs the clients that people have against a real `firebreak serve`: E2B's packages for JavaScript and
// Python, its command line, and what others built on them, and the official clients of the Model Context Protocol, all
// unmodified and at pinned versions. It has nothing but
// tests. The programs in testdata are users of these packages; each prints one line of JSON for each of its checks.
//
// scripts/install-test-tools.sh installs the packages into .cache/sdk. Where they are missing the tests are skipped with
// the reason, unless FIREBREAK_REQUIRE names sdk.
package sdktest
