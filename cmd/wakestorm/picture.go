package main

import (
	"errors"
	"fmt"
	"image/color"
	"math"
	"os"
	"strings"

	"github.com/bpfkill/bpfkill/vmtests/incident"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// Of a slide of 16 to 9. PNGs have 96 dots an inch.
const (
	pictureWidth  = 13.3 * vg.Inch
	pictureHeight = 7.5 * vg.Inch
)

// pens are colours that nobody confuses (Okabe and Ito), each with a dash of its
// own for those who see none, by strategy.
var pens = map[string]struct {
	colour color.RGBA
	dashes []vg.Length
	width  vg.Length
}{
	"servers":           {color.RGBA{213, 94, 0, 255}, nil, 5},
	"bpfkill-none":      {color.RGBA{230, 159, 0, 255}, []vg.Length{14, 6}, 4},
	"pkill":             {color.RGBA{204, 121, 167, 255}, []vg.Length{3, 4}, 4},
	"routers-first":     {color.RGBA{86, 180, 233, 255}, []vg.Length{10, 4, 3, 4}, 4},
	"cgroup.kill":       {color.RGBA{0, 158, 115, 255}, []vg.Length{6, 3}, 4},
	"bpfkill-no-corral": {color.RGBA{0, 0, 0, 255}, []vg.Length{2, 6}, 3},
	"bpfkill":           {color.RGBA{0, 114, 178, 255}, nil, 6},
}

// drawIncident draws what each strategy had swapped in over time, a line each,
// as NAME.svg and NAME.png. Of several runs it is the one in the middle.
func drawIncident(m *incident.Machine, name string) error {
	if len(m.Groups) == 0 {
		return fmt.Errorf("no run under %s was measured", m.Kernel)
	}
	first := m.Groups[0].Results[0]
	p := plot.New()
	p.BackgroundColor = color.White
	p.Title.Text = fmt.Sprintf("Swapped in by killing %d mail servers, %d routers of %d MiB asleep behind them\nLinux %s, %d MiB of memory",
		first.Servers, first.Routers, first.RouterBytes>>20, m.Kernel, (first.MemoryBytes+1<<19)>>20)
	p.X.Label.Text = "seconds after the killing command was started"
	p.Y.Label.Text = "swapped in (logarithmic, from 0)"
	p.Y.Scale, p.Y.Tick.Marker = fromZero{}, sizes{}
	legend := plot.NewLegend()
	legend.Top, legend.Left = true, true
	legend.ThumbnailWidth, legend.Padding = 0.7*vg.Inch, 0.16*vg.Inch
	for _, style := range []*font.Font{
		&p.Title.TextStyle.Font, &p.X.Label.TextStyle.Font, &p.Y.Label.TextStyle.Font,
		&p.X.Tick.Label.Font, &p.Y.Tick.Label.Font, &legend.TextStyle.Font,
	} {
		style.Size, style.Variant = 17, "Sans"
	}
	p.Add(plotter.NewGrid())
	until := 1.0
	for _, g := range m.Groups {
		r := g.Middle()
		until = max(until, math.Ceil(max(r.CalmMS, r.GoneMS)/1000+1))
	}
	for _, g := range m.Groups {
		line, err := lineOf(g, until)
		if err != nil {
			return err
		}
		p.Add(line)
		legend.Add(fmt.Sprintf("%s: %s", g.Strategy.Title, bytesText(swappedIn(g.Middle()))), line)
	}
	p.X.Min, p.X.Max = 0, until
	p.Y.Min, p.Y.Max = 0, max(p.Y.Max, 1<<30)
	for _, kind := range []string{"svg", "png"} {
		if err := save(p, legend, name, kind); err != nil {
			return fmt.Errorf("draw %s.%s: %w", name, kind, err)
		}
	}
	return nil
}

// save draws the plot, and to the right of it the legend.
func save(p *plot.Plot, legend plot.Legend, name, kind string) error {
	const legendWidth, margin = 4.7 * vg.Inch, 0.15 * vg.Inch
	canvas, err := draw.NewFormattedCanvas(pictureWidth, pictureHeight, kind)
	if err != nil {
		return err
	}
	whole := draw.New(canvas)
	whole.SetColor(color.White)
	whole.Fill(whole.Rectangle.Path())
	p.Draw(draw.Crop(whole, margin, -legendWidth-margin, margin, -margin))
	legend.Draw(draw.Crop(whole, pictureWidth-legendWidth, -margin, margin, -1.1*vg.Inch))
	file, err := os.Create(name + "." + kind)
	if err != nil {
		return err
	}
	_, err = canvas.WriteTo(file)
	return errors.Join(err, file.Close())
}

func swappedIn(r *incident.Result) float64 { return float64(r.SwapInPages) * float64(r.PageBytes) }

// lineOf draws one strategy, in steps: between two samples nobody looked.
func lineOf(g incident.Group, until float64) (*plotter.Line, error) {
	r := g.Middle()
	points := plotter.XYs{{X: 0, Y: 0}}
	for _, s := range r.Samples {
		points = append(points, plotter.XY{X: s.MS / 1000, Y: float64(s.Pages) * float64(r.PageBytes)})
	}
	points = append(points, plotter.XY{X: max(until, points[len(points)-1].X), Y: swappedIn(r)})
	line, err := plotter.NewLine(points)
	if err != nil {
		return nil, err
	}
	pen := pens[g.Strategy.Name]
	line.StepStyle = plotter.PostStep
	line.Color, line.Dashes, line.Width = pen.colour, pen.dashes, pen.width
	return line, nil
}

// fromZero is a logarithmic scale that has room for nothing at all: a page is a
// step up.
type fromZero struct{}

func (fromZero) Normalize(low, high, v float64) float64 {
	at := func(bytes float64) float64 { return math.Log1p(max(bytes, 0) / 4096) }
	return (at(v) - at(low)) / (at(high) - at(low))
}

// sizes are the ticks of that scale.
type sizes struct{}

func (sizes) Ticks(_, high float64) []plot.Tick {
	ticks := []plot.Tick{{Value: 0, Label: "0"}}
	for v := 4096.0; v <= high; v *= 8 {
		ticks = append(ticks, plot.Tick{Value: v, Label: bytesText(v)})
	}
	return ticks
}

func bytesText(b float64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	i := 0
	for ; b >= 1024 && i < len(units)-1; i++ {
		b /= 1024
	}
	if b >= 9.95 {
		return fmt.Sprintf("%.0f %s", b, units[i])
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", b), ".0") + " " + units[i]
}
