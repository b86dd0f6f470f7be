package result

import (
	"bytes"
	"errors"
	"fmt"
	"image/color"
	"io"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// Panel is one plot: samples side by side in groups along the horizontal axis,
// every value a dot, every median a bar with a whisker up to the 99th percentile, on a logarithmic scale that makes equal
// ratios equal distances.
type Panel struct {
	Title  string
	Unit   string // of the values
	Groups []string
	Series []Series
}

// Series is one colour: a sample for each group, which may be empty.
type Series struct {
	Name    string
	Samples []Sample
}

// Sizes of the drawing.
const (
	panelWidth  = 6 * vg.Inch
	panelHeight = 3.4 * vg.Inch

	groupShare = 0.8  // of a group's width taken by its samples
	dotRadius  = 1.8  // points
	medianPart = 0.35 // of a sample's width, to each side
	margin     = 0.1  // decades below and above the dots
	legendPart = 0.45 // of the dots' height left free above them for the legend
)

// colours can be told apart by the colour-blind (Okabe and Ito).
var colours = []color.RGBA{
	{R: 0xd5, G: 0x5e, A: 0xff}, {R: 0xe6, G: 0x9f, A: 0xff}, {G: 0x72, B: 0xb2, A: 0xff},
	{R: 0x56, G: 0xb4, B: 0xe9, A: 0xff}, {G: 0x9e, B: 0x73, A: 0xff}, {R: 0xcc, G: 0x79, B: 0xa7, A: 0xff},
}

// WriteSVG draws panels below each other. The same panels give the same bytes.
func WriteSVG(w io.Writer, panels ...Panel) error {
	if len(panels) == 0 {
		return errors.New("draw: no panel")
	}
	plots := make([][]*plot.Plot, len(panels))
	for i, p := range panels {
		drawn, err := p.plot()
		if err != nil {
			return fmt.Errorf("draw %q: %w", p.Title, err)
		}
		plots[i] = []*plot.Plot{drawn}
	}
	svg := vgsvg.New(panelWidth, panelHeight*vg.Length(len(panels)))
	canvas := draw.New(svg)
	canvas.FillPolygon(color.White, []vg.Point{canvas.Min, {X: canvas.Max.X, Y: canvas.Min.Y}, canvas.Max, {X: canvas.Min.X, Y: canvas.Max.Y}})
	tiles := draw.Tiles{Rows: len(panels), Cols: 1, PadY: vg.Points(12), PadTop: vg.Points(6), PadBottom: vg.Points(6), PadLeft: vg.Points(6), PadRight: vg.Points(6)}
	for i, row := range plot.Align(plots, tiles, canvas) {
		plots[i][0].Draw(row[0])
	}
	var b bytes.Buffer
	if _, err := svg.WriteTo(&b); err != nil {
		return fmt.Errorf("encode drawing: %w", err)
	}
	// A reader without the fonts by whose widths it was laid out sees similar ones.
	drawing := bytes.ReplaceAll(b.Bytes(), []byte("font-family:Liberation Sans;"), []byte("font-family:Liberation Sans,Arial,sans-serif;"))
	if _, err := w.Write(drawing); err != nil {
		return fmt.Errorf("write drawing: %w", err)
	}
	return nil
}

func (p Panel) validate() error {
	var errs []error
	if len(p.Groups) == 0 || len(p.Series) == 0 || len(p.Series) > len(colours) {
		errs = append(errs, fmt.Errorf("%d groups, %d series (at most %d)", len(p.Groups), len(p.Series), len(colours)))
	}
	values := 0
	for _, s := range p.Series {
		if len(s.Samples) != len(p.Groups) {
			errs = append(errs, fmt.Errorf("series %q has %d samples for %d groups", s.Name, len(s.Samples), len(p.Groups)))
		}
		for _, sample := range s.Samples {
			values += len(sample)
			for _, v := range sample {
				if !(v > 0) || math.IsInf(v, 0) {
					errs = append(errs, fmt.Errorf("series %q has the value %v, which a logarithmic scale cannot show", s.Name, v))
				}
			}
		}
	}
	if values == 0 {
		errs = append(errs, errors.New("no values"))
	}
	return errors.Join(errs...)
}

func (p Panel) plot() (*plot.Plot, error) {
	if err := p.validate(); err != nil {
		return nil, err
	}
	drawn := plot.New()
	drawn.Title.Text = p.Title
	drawn.Y.Label.Text = p.Unit
	drawn.Y.Scale = plot.LogScale{}
	drawn.Y.Tick.Marker = decades{}
	drawn.NominalX(p.Groups...)
	drawn.Legend.Top, drawn.Legend.Left = true, true
	drawn.Legend.Padding = vg.Points(2)
	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	grid.Horizontal.Color = color.Gray{Y: 0xdd}
	drawn.Add(grid)
	for _, style := range []*font.Font{
		&drawn.Title.TextStyle.Font, &drawn.Y.Label.TextStyle.Font, &drawn.Y.Tick.Label.Font,
		&drawn.X.Tick.Label.Font, &drawn.Legend.TextStyle.Font,
	} {
		style.Variant = "Sans"
	}
	width := groupShare / float64(len(p.Series))
	for i, s := range p.Series {
		if err := s.addTo(drawn, colours[i], float64(i)*width-groupShare/2+width/2, width); err != nil {
			return nil, err
		}
	}
	low, high := math.Log10(drawn.Y.Min)-margin, math.Log10(drawn.Y.Max)+margin
	high += legendPart * (high - low)
	drawn.Y.Min, drawn.Y.Max = math.Pow(10, low), math.Pow(10, high)
	drawn.X.Min, drawn.X.Max = -0.5, float64(len(p.Groups))-0.5
	return drawn, nil
}

// addTo draws the series at offset from the middle of each group.
func (s Series) addTo(drawn *plot.Plot, c color.RGBA, offset, width float64) error {
	var dots plotter.XYs
	for group, sample := range s.Samples {
		middle := float64(group) + offset
		for i, v := range sample {
			// Side by side in the order of measurement: drift shows as a slope.
			shift := 0.0
			if len(sample) > 1 {
				shift = (float64(i)/float64(len(sample)-1) - 0.5) * width * medianPart
			}
			dots = append(dots, plotter.XY{X: middle + shift, Y: v})
		}
		if len(sample) == 0 {
			continue
		}
		median := sample.Median()
		bar, err := plotter.NewLine(plotter.XYs{{X: middle - width*medianPart, Y: median}, {X: middle + width*medianPart, Y: median}})
		if err != nil {
			return err
		}
		bar.Color, bar.Width = c, vg.Points(2)
		most := sample.Quantile(0.99)
		whisker, err := plotter.NewLine(plotter.XYs{
			{X: middle, Y: median}, {X: middle, Y: most},
			{X: middle - width*medianPart/2, Y: most}, {X: middle + width*medianPart/2, Y: most},
		})
		if err != nil {
			return err
		}
		whisker.Color, whisker.Width = c, vg.Points(0.7)
		drawn.Add(whisker, bar)
	}
	scatter, err := plotter.NewScatter(dots)
	if err != nil {
		return err
	}
	scatter.GlyphStyle = draw.GlyphStyle{Color: c, Radius: vg.Points(dotRadius), Shape: draw.CircleGlyph{}}
	drawn.Add(scatter)
	drawn.Legend.Add(s.Name, scatter)
	return nil
}

// decades marks the powers of ten, and where there are few of them 2 and 5 times
// that, too.
type decades struct{}

// fewDecades is what fits with three names each.
const fewDecades = 3

// Ticks implements plot.Ticker.
func (decades) Ticks(low, high float64) []plot.Tick {
	digits := []float64{1, 2, 5}
	if math.Log10(high/low) > fewDecades {
		digits = digits[:1]
	}
	var ticks []plot.Tick
	for power := math.Floor(math.Log10(low)); power <= math.Log10(high); power++ {
		for _, digit := range digits {
			if v := digit * math.Pow(10, power); v >= low && v <= high {
				ticks = append(ticks, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'g', 6, 64)})
			}
		}
	}
	return ticks
}
