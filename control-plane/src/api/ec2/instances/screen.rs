//! A serial console as a picture: what a terminal at its other end would show.

use std::{convert::Infallible, num::NonZero};

use embedded_graphics::{
    Drawable as _, Pixel,
    draw_target::DrawTarget,
    geometry::{OriginDimensions, Point, Size},
    mono_font::{MonoTextStyleBuilder, iso_8859_1::FONT_9X15},
    pixelcolor::{Gray8, GrayColor as _},
    text::{Baseline, Text},
};
use jpeg_encoder::{ColorType, Encoder};

/// The size of a serial terminal's screen, in characters.
const COLUMNS: NonZero<u16> = NonZero::new(80).unwrap();
const ROWS: NonZero<u16> = NonZero::new(25).unwrap();
/// That of a character of the font, in pixels.
const WIDTH: u16 = 9;
const HEIGHT: u16 = 15;
/// That of the picture.
const PIXELS: [u16; 2] = [COLUMNS.get() * WIDTH, ROWS.get() * HEIGHT];
/// From 1 to 100: what keeps small letters sharp.
const QUALITY: u8 = 80;

const TEXT: Gray8 = Gray8::new(0xd0);

/// A JPEG of the screen that these bytes leave, the last that were written. They are a
/// guest's, and may be anything.
///
/// # Errors
/// When it can't be encoded: of this size it always can.
pub(super) fn picture(written: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut terminal = vt100::Parser::new(ROWS, COLUMNS, 0);
    terminal.process(written);
    let mut canvas = Canvas::default();
    for row in 0..ROWS.get() {
        for column in 0..COLUMNS.get() {
            let Some(cell) = terminal.screen().cell(row, column) else {
                continue;
            };
            let (ink, paper) = match cell.inverse() {
                true => (Gray8::BLACK, TEXT),
                false => (TEXT, Gray8::BLACK),
            };
            if !cell.has_contents() && !cell.inverse() {
                continue;
            }
            let text = if cell.has_contents() {
                cell.contents()
            } else {
                " "
            };
            let style = MonoTextStyleBuilder::new()
                .font(&FONT_9X15)
                .text_color(ink)
                .background_color(paper)
                .build();
            let place = Point::new((column * WIDTH).into(), (row * HEIGHT).into());
            let Ok(_) = Text::with_baseline(text, place, style, Baseline::Top).draw(&mut canvas);
        }
    }
    let mut jpeg = Vec::new();
    let encoder = Encoder::new(&mut jpeg, QUALITY);
    let [width, height] = PIXELS;
    encoder.encode(&canvas.0, width, height, ColorType::Luma)?;
    Ok(jpeg)
}

/// Gray pixels, row after row.
struct Canvas(Vec<u8>);

impl Default for Canvas {
    fn default() -> Self {
        let size = Self::SIZE;
        Self(vec![0; size.width as usize * size.height as usize])
    }
}

impl Canvas {
    const SIZE: Size = Size::new(PIXELS[0] as u32, PIXELS[1] as u32);
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Self::SIZE
    }
}

impl DrawTarget for Canvas {
    type Color = Gray8;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<Gray8>>,
    {
        for Pixel(at, color) in pixels {
            let (Ok(x), Ok(y)) = (usize::try_from(at.x), usize::try_from(at.y)) else {
                continue;
            };
            let width = Self::SIZE.width as usize;
            if x < width
                && let Some(pixel) = self.0.get_mut(y * width + x)
            {
                *pixel = color.luma();
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Where a JPEG says its size: in the frame header (ITU T.81, B.2.2).
    fn size(jpeg: &[u8]) -> (u16, u16) {
        let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        let number = |at: usize| u16::from_be_bytes([jpeg[frame + at], jpeg[frame + at + 1]]);
        (number(7), number(5))
    }

    #[test]
    fn a_screen_of_text_is_a_picture() {
        let blank = picture(b"").unwrap();
        assert_eq!(size(&blank), (720, 375));
        let login = picture(b"micro login: \x1b[7minverse\x1b[0m").unwrap();
        assert_ne!(blank, login);
        // What has left the screen leaves no trace; nor has it a length.
        let mut long = b"login\r\n".repeat(10_000);
        long.extend(b"\x1b[2J\x1b[H");
        assert_eq!(picture(&long).unwrap(), blank);
    }

    proptest! {
        #[test]
        fn anything_is_a_picture(
            bytes in proptest::collection::vec(
                prop_oneof![
                    any::<u8>(),
                    Just(0x1b), Just(b'['), Just(b';'), 0x30_u8..0x3a, 0x40_u8..0x7f
                ],
                0..4096,
            )
        ) {
            prop_assert_eq!(size(&picture(&bytes).unwrap()), (720, 375));
        }
    }
}
