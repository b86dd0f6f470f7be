package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"fermata/experiments/guests"
	"fermata/experiments/labrun"
	"fermata/imageio/manifest"
	"fermata/imageio/object"
	"fermata/imageio/repository"
)

// images are files of RAM: dir/G/guest.ram for generation G, from 1.
type images struct {
	dir   string
	names []string // of the files of a generation
	bytes int64    // of a generation
	data  int64    // pages of the first generation that are not all zeros
}

func (in images) generation(g int) string { return filepath.Join(in.dir, fmt.Sprint(g)) }

const (
	clusterName = "store"
	workFor     = 4 * time.Second // between two generations
)

// takeImages boots guests, takes a checkpoint of them for each generation, and writes
// their RAM to files.
func takeImages(ctx context.Context, o options, dir string, note func(string, ...any)) (in images, err error) {
	in.dir = dir
	note("booting %d guests of %d MiB", o.guests, o.memoryMiB)
	lab, err := labrun.NewScratch(ctx, o.scratch, name, 1)
	if err != nil {
		return in, err
	}
	defer func() { err = errors.Join(err, lab.End()) }()
	app := guests.Cluster{Count: o.guests, Work: guests.RunCanary, Tick: time.Second,
		Canary: guests.Canary{Rate: 50, SizeBytes: 1000, Length: 20 * time.Minute, Wires: guests.AllWires}}
	err = lab.BringGuests(ctx, clusterName, o.guestDir, o.memoryMiB, app, func(console []byte) bool {
		return labrun.LastCanary(console).Received > 0 || o.guests == 1
	})
	if err != nil {
		return in, err
	}
	repo, err := repository.Open(ctx, repository.Config{Dir: filepath.Join(lab.Dir, "repository")})
	if err != nil {
		return in, err
	}
	for g := 1; g <= generations; g++ {
		if err := labrun.Sleep(ctx, workFor); err != nil {
			return in, err
		}
		var taken struct {
			Epoch uint64 `json:"epoch"`
		}
		if err := lab.Command(ctx, io.Discard, &taken, "checkpoint", clusterName, "-o", "json"); err != nil {
			return in, err
		}
		m, err := repo.Manifest(ctx, clusterName, taken.Epoch)
		if err != nil {
			return in, err
		}
		if err := in.write(ctx, repo, m, g); err != nil {
			return in, err
		}
		note("generation %d", g)
	}
	return in, nil
}

// write makes the files of one generation.
func (in *images) write(ctx context.Context, repo *repository.Repository, m *manifest.Manifest, g int) error {
	if err := os.MkdirAll(in.generation(g), 0o700); err != nil {
		return err
	}
	rd, err := repo.NewReader(ctx, m.Packs)
	if err != nil {
		return err
	}
	in.names, in.bytes = nil, 0
	for _, guest := range m.Guests {
		for _, o := range guest.Objects {
			if o.Kind != manifest.KindMemory || o.SizeBytes < object.LeafBytes { // not the ROMs
				continue
			}
			file := guest.Name + "-" + filepath.Base(o.Name) + ".ram"
			if err := restoreTo(ctx, rd, repository.RefOf(o), filepath.Join(in.generation(g), file)); err != nil {
				return err
			}
			in.names = append(in.names, file)
			in.bytes += int64(o.SizeBytes)
		}
	}
	if g > 1 {
		return nil
	}
	for _, file := range in.names {
		n, err := dataIn(filepath.Join(in.generation(1), file))
		if err != nil {
			return err
		}
		in.data += n
	}
	return nil
}

// dataIn counts the bytes of pages that are not all zeros. It does not map the file: a
// process that is started counts as its own memory what its parent had.
func dataIn(path string) (n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close() // opened for reading
	page := make([]byte, object.PageBytes)
	for {
		switch _, err := io.ReadFull(f, page); {
		case errors.Is(err, io.EOF):
			return n, nil
		case err != nil:
			return 0, err
		case !zero(page):
			n += object.PageBytes
		}
	}
}

// restoreTo writes an image to a new file, holes where it is zeros.
func restoreTo(ctx context.Context, rd *repository.Reader, ref repository.Ref, path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(ref.Size); err != nil {
		return err
	}
	return rd.ReadImage(ctx, ref, f, repository.ReadOptions{})
}
