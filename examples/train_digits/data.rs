//! The images: 1,797 handwritten digits from the UCI repository, compiled into the program so that it runs from any
//! directory and on any host. `examples/data/README.md` names their authors and licence.

use std::io::Read;

use anyhow::{Context, Result, ensure};
use candle_core::{Device, Tensor};
use flate2::read::GzDecoder;

/// Pixels of an image: 8 rows of 8.
pub const PIXELS: usize = 64;
/// The digits 0 to 9.
pub const CLASSES: usize = 10;

const IMAGES: usize = 1797;
const FULL_INK: f32 = 16.0;
const PACKED: &[u8] = include_bytes!("../data/digits.gz");

/// Images and what they show.
#[derive(Default)]
pub struct Digits {
    /// [`PIXELS`] values of each image, 0.0 (blank) to 1.0 (full ink).
    pixels: Vec<f32>,
    /// The digit of each image.
    labels: Vec<u32>,
}

impl Digits {
    /// The training and the test set: every fifth image is kept out of training.
    pub fn load() -> Result<(Digits, Digits)> {
        let mut bytes = Vec::new();
        GzDecoder::new(PACKED).read_to_end(&mut bytes).context("unpacking examples/data/digits.gz")?;
        let expected = IMAGES * (PIXELS + 1);
        ensure!(bytes.len() == expected, "examples/data/digits.gz: {} bytes, expected {expected}", bytes.len());

        let (pixels, labels) = bytes.split_at(IMAGES * PIXELS);
        let (mut training, mut test) = (Digits::default(), Digits::default());
        for (i, (image, &label)) in pixels.chunks(PIXELS).zip(labels).enumerate() {
            let set = if i % 5 == 0 { &mut test } else { &mut training };
            set.pixels.extend(image.iter().map(|&ink| f32::from(ink) / FULL_INK));
            set.labels.push(u32::from(label));
        }
        Ok((training, test))
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// The chosen images as a matrix of one row each, and their labels as a vector.
    pub fn select(&self, images: &[usize]) -> Result<(Tensor, Tensor)> {
        let pixels: Vec<f32> =
            images.iter().flat_map(|&i| &self.pixels[i * PIXELS..(i + 1) * PIXELS]).copied().collect();
        let labels: Vec<u32> = images.iter().map(|&i| self.labels[i]).collect();
        Ok((
            Tensor::from_vec(pixels, (images.len(), PIXELS), &Device::Cpu)?,
            Tensor::from_vec(labels, images.len(), &Device::Cpu)?,
        ))
    }
}
