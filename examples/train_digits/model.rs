//! The network: 64 pixels, one hidden layer of 64, 10 classes. Its weights live in one flat slice of f32, layer after
//! layer. Broadcast, all-reduce, optimizer and hash all want them that way, and a single large all-reduce is cheaper
//! than one per layer.

use anyhow::{Context, Result};
use candle_core::{D, DType, Device, Tensor, Var};
use candle_nn::{Linear, Module, ops::log_softmax};
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::data::{CLASSES, Digits, PIXELS};

const HIDDEN: usize = 64;

/// (outputs, inputs) of each layer; its weights are followed by one bias per output.
const LAYERS: [(usize, usize); 2] = [(HIDDEN, PIXELS), (CLASSES, HIDDEN)];

/// Number of weights, biases included.
pub const WEIGHTS: usize = HIDDEN * PIXELS + HIDDEN + CLASSES * HIDDEN + CLASSES;

/// Weights to start from, drawn from the uniform distribution within 1/sqrt(inputs) of zero.
pub fn initial_weights(seed: u64) -> Vec<f32> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut weights = Vec::with_capacity(WEIGHTS);
    for (outputs, inputs) in LAYERS {
        let bound = 1.0 / (inputs as f32).sqrt();
        weights.extend((0..outputs * inputs + outputs).map(|_| random.random_range(-bound..bound)));
    }
    weights
}

/// The gradient and, as one more element at the end, the loss: each added up over the chosen images.
///
/// Sums and not means: the sum over a batch is the sum of its shards' sums, whatever their sizes.
pub fn gradient_and_loss(weights: &[f32], digits: &Digits, images: &[usize]) -> Result<Vec<f32>> {
    if images.is_empty() {
        return Ok(vec![0.0; WEIGHTS + 1]); // A batch smaller than the world leaves some ranks without an image.
    }
    let network = Network::new(weights)?;
    let (pixels, labels) = digits.select(images)?;
    let log_probabilities = log_softmax(&network.forward(&pixels)?, D::Minus1)?;
    let loss = log_probabilities.gather(&labels.unsqueeze(1)?, 1)?.sum_all()?.neg()?;

    let gradients = loss.backward()?;
    let mut sums = Vec::with_capacity(WEIGHTS + 1);
    for parameter in &network.parameters {
        let gradient = gradients.get(parameter).context("candle has no gradient for a parameter")?;
        sums.extend(gradient.flatten_all()?.to_vec1::<f32>()?);
    }
    sums.push(loss.to_scalar()?);
    Ok(sums)
}

/// How many of the chosen images the network gets right.
pub fn count_correct(weights: &[f32], digits: &Digits, images: &[usize]) -> Result<u32> {
    if images.is_empty() {
        return Ok(0);
    }
    let (pixels, labels) = digits.select(images)?;
    let guesses = Network::new(weights)?.forward(&pixels)?.argmax(D::Minus1)?;
    Ok(guesses.eq(&labels)?.to_dtype(DType::U32)?.sum_all()?.to_scalar()?)
}

/// The flat weights as tensors that candle can differentiate by.
struct Network {
    parameters: Vec<Var>,
}

impl Network {
    fn new(weights: &[f32]) -> Result<Network> {
        let mut parameters = Vec::new();
        let mut rest = weights;
        for (outputs, inputs) in LAYERS {
            let (matrix, tail) = rest.split_at(outputs * inputs);
            let (bias, tail) = tail.split_at(outputs);
            parameters.push(Var::from_slice(matrix, (outputs, inputs), &Device::Cpu)?);
            parameters.push(Var::from_slice(bias, outputs, &Device::Cpu)?);
            rest = tail;
        }
        Ok(Network { parameters })
    }

    /// One row of class scores for each row of pixels.
    fn forward(&self, pixels: &Tensor) -> Result<Tensor> {
        let layer = |i: usize| {
            Linear::new(
                self.parameters[2 * i].as_tensor().clone(),
                Some(self.parameters[2 * i + 1].as_tensor().clone()),
            )
        };
        // Not relu: its slope jumps at zero, so that a rounding difference there becomes a real one and two runs that
        // should match drift apart.
        let hidden = layer(0).forward(pixels)?.tanh()?;
        Ok(layer(1).forward(&hidden)?)
    }
}
