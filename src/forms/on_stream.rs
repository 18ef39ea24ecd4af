//! The form on a stream: the methods of [`OnStream`] queue the call there and return.

use maypole_collectives::schedule::Collective;
use maypole_collectives::{Element, ReduceOp, collectives};

use super::{BARRIER, Extra, Method, NO_EXTRA, methods};
use crate::Blocks;
use crate::cuda::{DeviceSlice, DeviceSliceMut, OnStream};
use crate::error::Result;

macro_rules! on_stream {
    (apart $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'b, T: Element>(
            &self,
            input: impl Into<DeviceSlice<'b, T>>,
            output: impl Into<DeviceSliceMut<'b, T>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let (input, output): (DeviceSlice<'b, T>, DeviceSliceMut<'b, T>) = (input.into(), output.into());
            let output = if method.leaves_output() { DeviceSliceMut::empty() } else { output };
            self.call(method.apart::<T>(input.len(), output.len()), input.bytes(), output.bytes())
        }
    };
    (in_place $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'b, T: Element>(
            &self,
            buffer: impl Into<DeviceSliceMut<'b, T>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let buffer: DeviceSliceMut<'b, T> = buffer.into();
            self.call_in_place(method.in_place::<T>(buffer.len()), buffer.bytes())
        }
    };
    (output $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'b, 'c, T: Element>(
            &self,
            input: impl Into<DeviceSlice<'b, T>>,
            output: impl Into<DeviceSliceMut<'b, T>>,
            blocks: impl Into<Blocks<'c>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let (input, output): (DeviceSlice<'b, T>, DeviceSliceMut<'b, T>) = (input.into(), output.into());
            let own = &[input.len()];
            let blocks = method.blocks(blocks, &[]);
            self.call_v(method.variable::<T>(), (input.bytes(), Blocks::packed(own)), (output.bytes(), blocks))
        }
    };
    (input $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'b, 'c, T: Element>(
            &self,
            input: impl Into<DeviceSlice<'b, T>>,
            blocks: impl Into<Blocks<'c>>,
            output: impl Into<DeviceSliceMut<'b, T>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let (input, output): (DeviceSlice<'b, T>, DeviceSliceMut<'b, T>) = (input.into(), output.into());
            let own = &[output.len()];
            let blocks = method.blocks(blocks, &[]);
            self.call_v(method.variable::<T>(), (input.bytes(), blocks), (output.bytes(), Blocks::packed(own)))
        }
    };
    (both $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'b, 'c, 'd, T: Element>(
            &self,
            input: impl Into<DeviceSlice<'b, T>>,
            sent: impl Into<Blocks<'c>>,
            output: impl Into<DeviceSliceMut<'b, T>>,
            received: impl Into<Blocks<'d>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let (input, output): (DeviceSlice<'b, T>, DeviceSliceMut<'b, T>) = (input.into(), output.into());
            self.call_v(method.variable::<T>(), (input.bytes(), sent.into()), (output.bytes(), received.into()))
        }
    };
    (buffer $collective:ident $name:ident ($($arg:ident: $type:ty),*) $doc:literal) => {
        #[doc = concat!("See [`Communicator::", stringify!($name), "`](crate::Communicator::", stringify!($name), ").")]
        pub fn $name<'b, 'c, T: Element>(
            &self,
            buffer: impl Into<DeviceSliceMut<'b, T>>,
            blocks: impl Into<Blocks<'c>>,
            $($arg: $type,)*
        ) -> Result<()> {
            let extra = NO_EXTRA$(.$arg($arg))*;
            let method = self.method(Collective::$collective, extra);
            let buffer: DeviceSliceMut<'b, T> = buffer.into();
            let own = [buffer.len()];
            self.call_v_in_place(method.variable::<T>(), buffer.bytes(), method.blocks(blocks, &own))
        }
    };
}

/// One method for each of the communicator's of the same name, on slices of device memory. Where a rank takes or gives
/// nothing, pass [`DeviceSlice::empty`] and [`DeviceSliceMut::empty`].
impl OnStream<'_> {
    collectives!(methods, on_stream);

    /// Returns at once; on the device, what follows on the stream waits until every rank's stream has come here.
    pub fn barrier(&self) -> Result<()> {
        self.call(BARRIER, DeviceSlice::empty(), DeviceSliceMut::empty())
    }

    fn method(&self, collective: Collective, extra: Extra) -> Method {
        Method { collective, rank: self.communicator().rank(), size: self.communicator().size(), extra }
    }
}
