package main

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"sort"
	"strings"
)

// node is a file as a layer has it; all names of a hard-linked file share one.
type node struct {
	kind       byte
	mode       int64
	uid, gid   int
	link       string
	major      int64
	minor      int64
	size       int64
	content    [sha256.Size]byte
	modified   int64
	attributes map[string]string
}

// tree is what is left of a layer once all its entries were applied, by path without slashes at the ends.
type tree map[string]*node

// readTree applies the entries of a tar in order; a later entry replaces an earlier one.
func readTree(reader io.Reader) (tree, error) {
	out := tree{}
	entries := tar.NewReader(reader)
	for {
		header, err := entries.Next()
		if errors.Is(err, io.EOF) {
			// Whoever writes has to come to the end.
			_, err = io.Copy(io.Discard, reader)
			return out, err
		}
		if err != nil {
			return nil, err
		}
		if header.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		name := out.resolve(header.Name)
		if name == "" {
			continue
		}
		if header.Typeflag == tar.TypeLink {
			target := out[out.resolve(header.Linkname)]
			if target == nil {
				return nil, fmt.Errorf("%s: no target %s", name, header.Linkname)
			}
			out.put(name, target)
			continue
		}
		file := &node{
			kind: header.Typeflag, mode: header.Mode & 0o7777, uid: header.Uid, gid: header.Gid,
			modified: header.ModTime.Unix(), attributes: map[string]string{},
		}
		for key, value := range header.PAXRecords {
			if attribute, found := strings.CutPrefix(key, "SCHILY.xattr."); found {
				file.attributes[attribute] = value
			}
		}
		switch header.Typeflag {
		case tar.TypeReg:
			hash := sha256.New()
			if file.size, err = io.Copy(hash, entries); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			file.content = [sha256.Size]byte(hash.Sum(nil))
		case tar.TypeSymlink:
			// The mode of a symbolic link means nothing.
			file.link, file.mode = header.Linkname, 0
		case tar.TypeChar, tar.TypeBlock:
			file.major, file.minor = header.Devmajor, header.Devminor
		}
		out.put(name, file)
	}
}

// resolve follows the symbolic links that the layer has so far in all but the last part of a name.
func (t tree) resolve(name string) string {
	rest, at := strings.Split(path.Clean("/" + name)[1:], "/"), ""
	for links := 0; len(rest) > 1 && links < 255; {
		next := path.Join(at, rest[0])
		rest = rest[1:]
		if found := t[next]; found != nil && found.kind == tar.TypeSymlink {
			links++
			target := found.link
			if !path.IsAbs(target) {
				target = path.Join("/", at, target)
			}
			at, rest = "", append(slices.DeleteFunc(strings.Split(path.Clean(target), "/"), empty), rest...)
			continue
		}
		at = next
	}
	return path.Join(append([]string{at}, rest...)...)
}

func empty(part string) bool { return part == "" }

func (t tree) put(name string, file *node) {
	if before := t[name]; before != nil && before.kind == tar.TypeDir && file.kind != tar.TypeDir {
		for below := range t {
			if strings.HasPrefix(below, name+"/") {
				delete(t, below)
			}
		}
	}
	t[name] = file
}

// compare says how got differs from want, by path.
func compare(want, got tree) []string {
	var out []string
	wanted, gotten := want.names(), got.names()
	add := func(name, what string) { out = append(out, fmt.Sprintf("%.100s: %s", name, what)) }
	for name, file := range want {
		other := got[name]
		switch {
		case other == nil:
			add(name, "is missing")
		case !same(file, other):
			add(name, fmt.Sprintf("is %v instead of %v", *other, *file))
		case !slices.Equal(wanted[file], gotten[other]):
			add(name, "has other hard links")
		}
	}
	for name := range got {
		if want[name] == nil {
			add(name, "is too much")
		}
	}
	sort.Strings(out)
	return out
}

func same(a, b *node) bool {
	if len(a.attributes) != len(b.attributes) {
		return false
	}
	for key, value := range a.attributes {
		if other, found := b.attributes[key]; !found || other != value {
			return false
		}
	}
	x, y := *a, *b
	x.attributes, y.attributes = nil, nil
	return x.kind == y.kind && x.mode == y.mode && x.uid == y.uid && x.gid == y.gid && x.link == y.link &&
		x.major == y.major && x.minor == y.minor && x.size == y.size && x.content == y.content && x.modified == y.modified
}

// names lists the names of every file that is no directory: several where there are hard links.
func (t tree) names() map[*node][]string {
	out := map[*node][]string{}
	for name, file := range t {
		if file.kind != tar.TypeDir {
			out[file] = append(out[file], name)
		}
	}
	for _, names := range out {
		sort.Strings(names)
	}
	return out
}
