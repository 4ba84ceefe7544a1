"""The words of docs/modes.md; `modes.py` has the figures."""

from __future__ import annotations

from string import Template

PAGE = Template("""\
# The purpose of each mode, and how well it works

Everything here was measured on the small demo model, with real exemplars that it was not trained on, two seeds each,
$steps DDIM steps, and the guidance scale of the mode (variation 5, the others 7). "Plain" means the same model with
the same prompt and seeds, but without RIVAL. In the images each row uses one seed.

- **palette distance**: the distance in Lab units that the average pixel must move to turn the six colours of one image
  into those of the other ([effect.md](effect.md)). Smaller is closer.
- **layout correlation**: whether edges are in the same places, on a grid of 16 by 16, whatever the colours. 1 means
  the same places, 0 means unrelated ones.
- **texture distance**: the difference in the strengths of all edges, whatever their places, in grey levels a pixel.
- **probability, first place**: the probability that the [classifier](../benchmarks/concepts.md) gives to a concept,
  and how often it puts the concept first.

The exemplar is encoded and decoded by the VAE before it is measured. Each figure is a mean over all cases. With so few
images, small differences mean little.

## text: a new subject in the exemplar's colours

The prompt says what to draw, and the photo gives the look.

![Four exemplars, four prompts, plain and with RIVAL](modes-text.png)

$text

The colours and nearly always the background are the photo's: the palette is little more than half as far from it as
that of plain generation. The subject of the prompt appears every time. In mode `text` the first steps do not see the
exemplar (`early_steps` 960), and the evaluations with the negative prompt see it more often (`uncond_share` 0.75).
Compared with mode `variation` and the same prompt, this gives more of the prompt and a little less of the palette.

## edit: another prompt, the same layout

Describe the photo in the exemplar prompt, and the image that you want in the prompt.

![Four exemplars with another background, from edit to variation](modes-edit.png)

$edit

The distances of backgrounds are in grey levels of 255. The background that the prompt asks for appears, as it does
without RIVAL, and the subject lies as it does in the photo. Up to 0.5 a larger `start_mix` changes little; above it the
layout becomes that of a variation:

$mixes

At 0 a sampler that adds no noise gives every seed the same image, because only the start depends on the seed.

## inpaint: filling a mask

Paint the part white that is to be made new; the rest does not change. Without another exemplar the mask is filled from
the image itself.

![Four photos, their right halves filled by plain inpainting and by RIVAL](modes-inpaint.png)

The right half is filled. The table gives the distance of its palette:

$inpaint

Plain inpainting starts from noise inside the mask, and keeps the photo around it with new noise at every step. With
RIVAL the latents outside the mask are the photo's until the end, and its pixels are put back unchanged. Filled from
the image itself, the background and the colours of the subject continue across the edge, with a prompt and without
one; the whole heart came back. From another exemplar come its background and its colours, and the edge of the mask can
be seen. Without a prompt its subject does not: a wheel of the taxi is left, or a pale blot of the house.

## A region of the exemplar

Paint the part of the exemplar white that shall be seen.

![Exemplars painted over outside a circle, seen whole and through the circle](modes-region.png)

The exemplar is painted over around the middle, in a strong colour. The table gives the distance of the images'
palettes from the region and from this colour, and the change of an image when the photo is painted over:

$region

If the exemplar is seen whole, the paint floods the image. With the region the images are as far from the paint as
plain images are. A trace is left, because the features of the region were computed beside the paint. A region is used
for attention only: the start is noise, no statistics are aligned, and the evaluations with the negative prompt always
see it. So it brings much less than a whole exemplar: here the palette is a little nearer to the region than that of
plain images, and chance decides the background. With an exemplar as flat as the heart, the image can get speckled.

## Several exemplars

A weight is an exemplar's share in the start, in the statistics and in attention.

![From all of one exemplar to all of another](modes-several.png)

$several

The palette goes from one exemplar to the other, fastest around equal weights.

## similarity

One slider goes from "inspired by the exemplar" over the defaults to "almost the same". It sets `strength`,
`uncond_share`, `t_align`, `t_early` and `start_mix` ([the values](parameters.md#similarity)).

![Four exemplars at eleven similarities, with a prompt and without](modes-similarity.png)

Eight exemplars. The last two columns are root mean square differences of 255. With the subject as prompt:

$similarity_prompt

Without a prompt, at denoising strength 1:

$similarity_empty

Up to 0.5 the colours come closer, and the seed decides the layout. Above 0.5 `start_mix` falls: the layout comes closer
too, and the seeds differ less.

## layers and strength

![Four exemplars with each choice of layers and strength](modes-layers.png)

Layers are named by the size of a token in pixels; `fine` is the smallest. The first row has no injection, so it shows
the effect of start and alignment alone. With a prompt for another subject:

$layers_prompt

Without a prompt:

$layers_empty

- `fine` (8) brings most of what `all` brings in palette and texture. It also takes as much from the prompt.
- `coarse` (16, 32) brings about half of the palette, and with a prompt no texture; it leaves the subject to the prompt.
  Without a prompt it brings most of the layout that attention brings. Its effect on palette and subject is a little
  more than that of strength 0.25. Nearly all of it comes from 16, because the image has only sixteen tokens of size 32.
- No choice of layers brings content without style, or style without content: the names say how large a token is and
  nothing else. Attention brings little content on this model. Without a prompt the exemplar's concept is seldom
  recognised, whichever layers see the exemplar. So the concept has to be in the prompt.
- Most of the effect of `strength` lies below 0.5. At 0.25 the subject of the prompt does not suffer, and the palette
  has two fifths of the effect with a prompt and half of it without one.

`python benchmarks/modes.py` wrote these figures and images. The exemplars in them are EmojiOne 2.x by Emoji One, CC BY
4.0, for the taxi Twemoji by Twitter, Inc. and other contributors, CC BY 4.0, and for the tulip Fluent Emoji by
Microsoft, MIT, placed on plain backgrounds.
""")
