// Command consumer does with a builder what nerdctl, acceld and BuildKit do: it converts an image by the converter of
// containerd's nydus-snapshotter, which runs the builder, and converts every layer back. One run is one way to convert,
// for the converter looks at the builder's features once in a process.
//
// It leaves an OCI layout with the source and the Nydus image (tags "source" and "nydus"), and fails unless the layers
// that come back hold what the source's hold.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	imageconverter "github.com/containerd/containerd/v2/core/images/converter"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/nydus-snapshotter/pkg/converter"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// limit bounds one run of the builder.
const limit = 5 * time.Minute

type options struct {
	layout, tag, out string
	pack             converter.PackOption
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("consumer: ")
	var o options
	flag.StringVar(&o.pack.BuilderPath, "builder", "nydus-image", "the builder")
	flag.StringVar(&o.layout, "layout", "", "OCI layout with the source")
	flag.StringVar(&o.tag, "tag", "", "its tag")
	flag.StringVar(&o.out, "out", "", "directory for the layout that is made")
	flag.StringVar(&o.pack.FsVersion, "fs-version", "6", "5 or 6")
	flag.StringVar(&o.pack.Compressor, "compressor", "", "zstd, lz4_block or none; the builder's default if empty")
	flag.StringVar(&o.pack.ChunkSize, "chunk-size", "", "chunk size")
	flag.StringVar(&o.pack.BatchSize, "batch-size", "", "batch size")
	flag.StringVar(&o.pack.ChunkDictPath, "chunk-dict", "", "bootstrap of a dictionary")
	flag.StringVar(&o.pack.PrefetchPatterns, "prefetch", "", "prefetch patterns")
	flag.BoolVar(&o.pack.AlignedChunk, "aligned-chunk", false, "align chunks (v5)")
	flag.BoolVar(&o.pack.Encrypt, "encrypt", false, "encrypt blobs")
	flag.BoolVar(&o.pack.OCIRef, "oci-ref", false, "refer to the source's layers")
	flag.Parse()
	if err := run(context.Background(), o); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, o options) error {
	source, err := openLayout(o.layout, o.tag, o.out)
	if err != nil {
		return err
	}
	store, err := local.NewLabeledStore(o.out, &labels{of: map[digest.Digest]map[string]string{}})
	if err != nil {
		return err
	}
	work := filepath.Join(o.out, "work")
	if err := os.MkdirAll(work, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(work)
	timeout := limit
	o.pack.WorkDir, o.pack.Timeout = work, &timeout
	merge := converter.MergeOption{
		WorkDir:          work,
		BuilderPath:      o.pack.BuilderPath,
		FsVersion:        o.pack.FsVersion,
		ChunkDictPath:    o.pack.ChunkDictPath,
		PrefetchPatterns: o.pack.PrefetchPatterns,
		OCIRef:           o.pack.OCIRef,
		Timeout:          &timeout,
		OCI:              true,
	}
	convert := imageconverter.IndexConvertFuncWithHook(converter.LayerConvertFunc(o.pack), true, platforms.All,
		imageconverter.ConvertHooks{PostConvertHook: converter.ConvertHookFunc(merge)})
	nydus, err := convert(ctx, store, source)
	if err != nil {
		return fmt.Errorf("convert: %w", err)
	}
	if nydus == nil {
		return errors.New("the converter left the image as it was")
	}
	if err := writeIndex(o.out, map[string]ocispec.Descriptor{"source": source, "nydus": *nydus}); err != nil {
		return err
	}
	if o.pack.OCIRef {
		// Its data is the source's.
		return nil
	}
	return compareLayers(ctx, store, source, *nydus, o.pack)
}

// compareLayers converts every layer back and compares it with the source's.
func compareLayers(ctx context.Context, store content.Store, source, nydus ocispec.Descriptor, pack converter.PackOption) error {
	var from, to ocispec.Manifest
	if err := readJSON(ctx, store, source, &from); err != nil {
		return err
	}
	if err := readJSON(ctx, store, nydus, &to); err != nil {
		return err
	}
	last := len(to.Layers) - 1
	if last < len(from.Layers) || !converter.IsNydusBootstrap(to.Layers[last]) {
		return fmt.Errorf("%d layers became %d, the last of which has to be the bootstrap", len(from.Layers), len(to.Layers))
	}
	if pack.ChunkDictPath != "" || pack.BatchSize != "" {
		// The converter has no more than the layer's chunk data: not that of the dictionary's blobs, nor the table that
		// says where the chunks of batches are, which cannot be found out from the data of every layer.
		return nil
	}
	for i, layer := range from.Layers {
		want, err := sourceTree(ctx, store, layer)
		if err != nil {
			return fmt.Errorf("source layer %d: %w", i, err)
		}
		for _, stream := range []bool{false, true} {
			got, err := unpackedTree(ctx, store, to.Layers[i], converter.UnpackOption{
				WorkDir: pack.WorkDir, BuilderPath: pack.BuilderPath, Timeout: pack.Timeout, Stream: stream,
			})
			if err != nil {
				return fmt.Errorf("layer %d (stream %v): %w", i, stream, err)
			}
			if differences := compare(want, got); len(differences) > 0 {
				return fmt.Errorf("layer %d (stream %v): %d differences, such as %q", i, stream, len(differences), differences[0])
			}
		}
	}
	return nil
}

func sourceTree(ctx context.Context, store content.Store, layer ocispec.Descriptor) (tree, error) {
	reader, err := store.ReaderAt(ctx, layer)
	if err != nil {
		return nil, err
	}
	defer reader.Close()
	plain, err := compression.DecompressStream(content.NewReader(reader))
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	return readTree(plain)
}

func unpackedTree(ctx context.Context, store content.Store, layer ocispec.Descriptor, opt converter.UnpackOption) (tree, error) {
	blob, err := store.ReaderAt(ctx, layer)
	if err != nil {
		return nil, err
	}
	defer blob.Close()
	out, in := io.Pipe()
	go func() { in.CloseWithError(converter.Unpack(ctx, blob, in, opt)) }()
	got, err := readTree(out)
	// Nobody is left waiting to write.
	out.CloseWithError(errors.New("the reader has ended"))
	return got, err
}

// openLayout finds the tag's manifest and puts the layout's blobs into out, which is to become the content store.
func openLayout(layout, tag, out string) (found ocispec.Descriptor, err error) {
	text, err := os.ReadFile(filepath.Join(layout, "index.json"))
	if err != nil {
		return found, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(text, &index); err != nil {
		return found, fmt.Errorf("%s: %w", layout, err)
	}
	for _, manifest := range index.Manifests {
		if manifest.Annotations[ocispec.AnnotationRefName] == tag {
			found = manifest
		}
	}
	if found.Digest == "" {
		return found, fmt.Errorf("%s has no tag %s", layout, tag)
	}
	blobs := filepath.Join(layout, "blobs", "sha256")
	entries, err := os.ReadDir(blobs)
	if err != nil {
		return found, err
	}
	into := filepath.Join(out, "blobs", "sha256")
	if err := os.MkdirAll(into, 0o755); err != nil {
		return found, err
	}
	for _, entry := range entries {
		path, err := filepath.Abs(filepath.Join(blobs, entry.Name()))
		if err != nil {
			return found, err
		}
		if err := os.Symlink(path, filepath.Join(into, entry.Name())); err != nil {
			return found, err
		}
	}
	return found, nil
}

func writeIndex(out string, tags map[string]ocispec.Descriptor) error {
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for tag, descriptor := range tags {
		descriptor.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
		index.Manifests = append(index.Manifests, descriptor)
	}
	text, err := json.Marshal(index)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(out, "index.json"), text, 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(out, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

func readJSON(ctx context.Context, store content.Store, descriptor ocispec.Descriptor, into any) error {
	text, err := content.ReadBlob(ctx, store, descriptor)
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

// labels keeps the labels of the content store, which the converter notes digests in, in memory.
type labels struct {
	mutex sync.Mutex
	of    map[digest.Digest]map[string]string
}

func (l *labels) Get(blob digest.Digest) (map[string]string, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	copied := map[string]string{}
	for key, value := range l.of[blob] {
		copied[key] = value
	}
	return copied, nil
}

func (l *labels) Set(blob digest.Digest, set map[string]string) error {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	l.of[blob] = set
	return nil
}

func (l *labels) Update(blob digest.Digest, update map[string]string) (map[string]string, error) {
	merged, err := l.Get(blob)
	if err != nil {
		return nil, err
	}
	for key, value := range update {
		if value == "" {
			delete(merged, key)
		} else {
			merged[key] = value
		}
	}
	return merged, l.Set(blob, merged)
}
