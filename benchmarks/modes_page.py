"""The words of docs/modes.md; `modes.py` has the figures."""

from __future__ import annotations

from string import Template

PAGE = Template("""\
# What each mode is for, and whether it does it

Measured on the small demo model with real exemplars that it was not trained on, two seeds each, $steps DDIM steps, at
the mode's own guidance scale (variation 5, the others 7). "Plain" is the same model with the same prompt and seeds
without RIVAL. In the pictures a row has one seed throughout.

- **palette distance**: how far the average pixel must move in Lab units to turn one picture's six colours into the
  other's ([effect.md](effect.md)). Smaller is closer.
- **layout correlation**: whether edges lie in the same places, on a grid of 16 by 16, whatever the colours: 1 is the
  same, 0 unrelated.
- **texture distance**: how different the strengths of all edges are, wherever they lie, in grey levels a pixel.
- **probability, first place**: what the [classifier](../benchmarks/concepts.md) thinks of a concept.

The exemplar is taken as the VAE gives it back. A figure is a mean over all cases; with so few images small differences
mean little.

## text: a new thing in the exemplar's colours

Say in the prompt what to draw; the photo says how it looks.

![Four exemplars, four prompts, plain and with RIVAL](modes-text.png)

$text

The colours and the ground are the photo's, about half as far from it as plain generation, and what the prompt names
appears nearly every time; where it does not, it is mostly the fish that has lost its shape. Mode `text` leaves the
first steps alone (`early_steps` 960): against mode `variation` with the same prompt that is a little more of the prompt
for a little less of the palette.

## edit: another prompt, the same layout

Describe the photo in the exemplar prompt, and the photo as you want it in the prompt.

![Four exemplars with another background, from edit to variation](modes-edit.png)

$edit

Backgrounds in grey levels of 255: the asked one appears, as without RIVAL, and the thing lies as it does in the photo.
`start_mix` leads from there to a variation in even steps:

$mixes

At 0 a sampler without randomness gives every seed the same picture: only the start is drawn by seed.

## inpaint: filling a hole

Paint white what is to be made anew: the rest stays as it is. Without another exemplar the hole is filled from the
picture itself.

![Four photos, their right halves filled by plain inpainting and by RIVAL](modes-inpaint.png)

The right half is filled. Its palette's distance:

$inpaint

Plain inpainting starts from noise in the hole and keeps the photo, with new noise at every step, around it. With
RIVAL the kept latents are the photo's to the end, and its pixels are put back as they were. From the picture itself the
ground and the thing's colours go on across the edge, with a prompt and without, and once the whole heart came back.
Another exemplar's colours come too, but less: around the hole the model sees the kept picture, which asks for its own.

## A region of the exemplar

Paint white what shall be seen of the exemplar.

![Exemplars painted over outside of a circle, seen whole and through the circle](modes-region.png)

The exemplar is painted over around the middle, in a strong colour. Distances of the pictures' palettes from the
region's and from that colour, and how far a picture moves if the photo is painted over:

$region

Seen whole, the paint floods the picture. With the region the pictures are as far from the paint as plain ones are. A
trace is left: the region's own features were computed beside the paint. A region is seen by attention alone, so it
brings much less than a whole exemplar does and may leave a background to chance: the start is noise and no statistics
are aligned. An exemplar as flat as the heart can turn it into confetti.

## Several exemplars

A weight is an exemplar's share: in the start, in the statistics and in what attention sees.

![From all of one exemplar to all of another](modes-several.png)

$several

The palette leads evenly from one to the other.

## similarity

One slider from inspired by the exemplar to almost the same, in place of `t_align`, `t_early` and `start_mix`.

![Five exemplars at five similarities](modes-similarity.png)

$similarity

Up to 0.5 it is the colours that come closer, and the layout is left to the seed; above it `start_mix` falls and brings
the layout.

## layers and strength

![Four exemplars with each choice of layers and strength](modes-layers.png)

Named by the size of a token in pixels; `fine` is the smallest. The first row has no injection: what start and alignment
do alone. With a prompt for another thing:

$layers_prompt

Without a prompt:

$layers_empty

- `fine` (8) carries nearly all of what `all` does: palette, texture, and the little of layout and content that comes
  through attention. It also costs the prompt as much.
- `coarse` (16, 32) carries a share of the palette and no texture, and leaves the prompt's thing alone: about as much as
  strength 0.25. All of it comes from 16. 32 alone does nothing here: the picture has only
  sixteen tokens of that size.
- No choice carries content without style, or the reverse: the names say how large a token is and no more. Attention
  brings little content on this model. Without a prompt the exemplar's concept is seldom recognised, whichever layers
  see it: the concept has to be in the prompt.
- `strength` leads evenly from none to all with a prompt, and costs the prompt's thing little up to 0.5. Without a
  prompt the first quarter already goes half of the way.

Figures and pictures by `python benchmarks/modes.py`. The pictured exemplars are EmojiOne 2.x by Emoji One, CC BY 4.0,
and for the taxi Twemoji by Twitter, Inc. and other contributors, CC BY 4.0, placed on plain backgrounds.
""")
