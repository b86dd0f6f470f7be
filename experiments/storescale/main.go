// Command storescale asks what a repository of years costs: how much memory the index
// takes, how long it takes to learn all packs, and how long and in how much memory a
// prune finds out what is needed, for 1, 10 and 100 million distinct pages (4, 40 and
// 400 GB of RAM images).
//
// The packs are synthetic: their tables of contents and the trees of the images are
// those of random pages, but the pages themselves are not there, as nothing that is
// measured reads one. So a compaction is planned, not done.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"fermata/experiments/result"
	"fermata/imageio/object"
	"fermata/imageio/repository"
)

const name = "storescale"

// workerArg makes the program a process that is measured: worker JOB REPOSITORY.
const workerArg = "worker"

func main() {
	if len(os.Args) == 4 && os.Args[1] == workerArg {
		if err := work(os.Args[2], os.Args[3], os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(result.Main(name, run))
}

type options struct {
	n       int
	pages   []int64
	json    bool
	scratch string
}

func parseOptions(args []string, complaints io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet(name, flag.ContinueOnError)
	fs.SetOutput(complaints)
	quick := fs.Bool("quick", false, "two small repositories: shows that it works, measures nothing")
	sizes := fs.String("pages", "1000000,10000000,100000000", "distinct `pages`, a list")
	fs.IntVar(&o.n, "n", 3, "how often each is measured")
	fs.StringVar(&o.scratch, "dir", "/dev/shm", "`directory` for everything that is written; 7 GB for 100 million pages")
	var err error
	o.json, err = result.ParseFlags(fs, args, func() error {
		if *quick {
			*sizes, o.n = "20000,40000", 1
		}
		var errs []error
		for word := range strings.SplitSeq(*sizes, ",") {
			n, err := strconv.ParseInt(word, 10, 64)
			if err != nil || n < 10_000 || n > 1_000_000_000 {
				errs = append(errs, fmt.Errorf("-pages %q: want 10,000 to 1,000,000,000", word))
			}
			o.pages = append(o.pages, n)
		}
		if o.n < 1 {
			errs = append(errs, fmt.Errorf("-n %d: want 1 or more", o.n))
		}
		return errors.Join(errs...)
	})
	return o, err
}

// row is one repository.
type row struct {
	Pages       int64         `json:"pages"` // distinct ones, of both checkpoints
	Packs       int           `json:"packs"`
	OpenS       result.Sample `json:"open_s"`         // until all packs are known
	IndexMiB    result.Sample `json:"index_mib"`      // heap, all packs known
	BytesAPage  result.Sample `json:"bytes_a_page"`   // of the index
	OpenPeakMiB result.Sample `json:"open_peak_mib"`  // of the process
	PlanS       result.Sample `json:"plan_prune_s"`   // to find out what is needed after one checkpoint is deleted
	PlanPeakMiB result.Sample `json:"plan_peak_mib"`  // of the process
	LiveShare   float64       `json:"to_compact"`     // part of the packs that would be compacted
	StoredBytes int64         `json:"metadata_bytes"` // tables of contents and trees
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	o, err := parseOptions(args, stderr)
	if err != nil {
		return err
	}
	doc, err := result.New[row](ctx, name)
	if err != nil {
		return err
	}
	note := result.Notes(stderr)
	for _, pages := range o.pages {
		r, err := measure(ctx, o, pages, note)
		if err != nil {
			return fmt.Errorf("%d pages: %w", pages, err)
		}
		doc.Rows = append(doc.Rows, r)
	}
	doc.Goals = goals(doc.Rows)
	return doc.Print(stdout, o.json, columns())
}

func measure(ctx context.Context, o options, pages int64, note func(string, ...any)) (r row, err error) {
	dir, err := os.MkdirTemp(o.scratch, "fermata-scale-")
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	repo := filepath.Join(dir, "repo")
	// In a process of its own: what it has in memory is not for us to keep.
	var made synthetic
	if _, err := worker(ctx, &made, fmt.Sprintf("make:%d", pages), repo); err != nil {
		return r, err
	}
	r.Pages, r.Packs, r.StoredBytes = made.Pages, made.Packs, made.Bytes
	note("%d pages in %d packs", r.Pages, r.Packs)
	for range o.n {
		var opened openMeasured
		peak, err := worker(ctx, &opened, "open", repo)
		if err != nil {
			return r, err
		}
		r.OpenS = append(r.OpenS, opened.Seconds)
		r.IndexMiB = append(r.IndexMiB, float64(opened.Bytes)/(1<<20))
		r.BytesAPage = append(r.BytesAPage, float64(opened.Bytes)/float64(r.Pages))
		r.OpenPeakMiB = append(r.OpenPeakMiB, peak)
		var planned planMeasured
		if peak, err = worker(ctx, &planned, "plan", repo); err != nil {
			return r, err
		}
		if planned.Problem != "" {
			return r, errors.New(planned.Problem)
		}
		r.PlanS = append(r.PlanS, planned.Seconds)
		r.PlanPeakMiB = append(r.PlanPeakMiB, peak)
		r.LiveShare = float64(planned.Compact) / float64(r.Packs)
		note("  known in %.2f s, planned in %.2f s", opened.Seconds, planned.Seconds)
	}
	return r, nil
}

// worker runs a job in a process of its own. peakMiB is the most that it had.
func worker(ctx context.Context, into any, job, repo string) (peakMiB float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.CommandContext(ctx, self, workerArg, job, repo)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%s: %w\n%s", job, err, stderr.Bytes())
	}
	if u, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
		peakMiB = float64(u.Maxrss) / 1024
	}
	return peakMiB, json.Unmarshal(stdout.Bytes(), into)
}

func goals(rows []row) []result.Goal {
	var all []result.Goal
	for _, r := range rows {
		all = append(all, result.AtMost(fmt.Sprintf("%d pages: bytes of index a page", r.Pages), 40, r.BytesAPage.Median()))
	}
	return all
}

func columns() []result.Column[row] {
	return []result.Column[row]{
		{Name: "PAGES", Cell: func(r row) string { return strconv.FormatInt(r.Pages, 10) }},
		{Name: "RAM GB", Cell: func(r row) string { return strconv.FormatInt(r.Pages*object.PageBytes/1e9, 10) }},
		{Name: "PACKS", Cell: func(r row) string { return strconv.Itoa(r.Packs) }},
		{Name: "OPEN s", Cell: func(r row) string { return r.OpenS.String() }},
		{Name: "INDEX MiB", Cell: func(r row) string { return r.IndexMiB.String() }},
		{Name: "BYTES A PAGE", Cell: func(r row) string { return r.BytesAPage.String() }},
		{Name: "PEAK MiB", Cell: func(r row) string { return r.OpenPeakMiB.String() }},
		{Name: "PLAN s", Cell: func(r row) string { return r.PlanS.String() }},
		{Name: "PEAK MiB", Cell: func(r row) string { return r.PlanPeakMiB.String() }},
		{Name: "TO COMPACT", Cell: func(r row) string { return fmt.Sprintf("%.0f %%", 100*r.LiveShare) }},
	}
}

type openMeasured struct {
	Seconds float64 `json:"seconds"`
	Bytes   uint64  `json:"bytes"` // heap
}

type planMeasured struct {
	Seconds float64 `json:"seconds"`
	Compact int     `json:"compact"`
	Problem string  `json:"problem"`
}

// work is one job of a worker.
func work(job, dir string, out io.Writer) error {
	ctx := context.Background() // whoever started it kills it
	if pages, ok := strings.CutPrefix(job, "make:"); ok {
		n, err := strconv.ParseInt(pages, 10, 64)
		if err != nil {
			return err
		}
		made, err := synthesize(ctx, dir, n)
		if err != nil {
			return err
		}
		return json.NewEncoder(out).Encode(made)
	}
	before := heap()
	begun := time.Now()
	repo, err := repository.Open(ctx, repository.Config{Dir: dir})
	if err != nil {
		return err
	}
	switch job {
	case "open":
		if err := repo.Refresh(ctx); err != nil {
			return err
		}
		took := time.Since(begun)
		err = json.NewEncoder(out).Encode(openMeasured{took.Seconds(), heap() - before})
	case "plan":
		var plan *repository.PrunePlan
		plan, err = repo.PlanPrune(ctx, repository.PruneOptions{Retention: repository.Retention{Last: 1}, CompactBelow: 0.6})
		if err != nil {
			return err
		}
		err = json.NewEncoder(out).Encode(planMeasured{time.Since(begun).Seconds(), plan.CompactPacks, plan.NoCompaction})
	default:
		err = fmt.Errorf("no job %q", job)
	}
	keepAlive(repo)
	return err
}
