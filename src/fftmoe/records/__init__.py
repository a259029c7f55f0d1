"""Defines the values that server and client exchange, their form on the wire, and the names of their tensors.

Every package above may import this one. It contains no rule of a method or of a round.
"""

from fftmoe.records.digests import HALVES as HALVES
from fftmoe.records.digests import digest as digest
from fftmoe.records.digests import made_on as made_on
from fftmoe.records.messages import NO_DIGEST as NO_DIGEST
from fftmoe.records.messages import Budget as Budget
from fftmoe.records.messages import ClientPlan as ClientPlan
from fftmoe.records.messages import ClientUpdate as ClientUpdate
from fftmoe.records.messages import Experts as Experts
from fftmoe.records.messages import RoundPlan as RoundPlan
from fftmoe.records.messages import ServerState as ServerState
from fftmoe.records.messages import Tensors as Tensors
from fftmoe.records.messages import Training as Training
from fftmoe.records.release import Release as Release
from fftmoe.records.schedule import Schedule as Schedule
from fftmoe.records.wire import inspect_message as inspect_message
from fftmoe.records.wire import make_update as make_update
from fftmoe.records.wire import pack as pack
from fftmoe.records.wire import pack_plan as pack_plan
from fftmoe.records.wire import pack_update as pack_update
from fftmoe.records.wire import training_values as training_values
from fftmoe.records.wire import unpack as unpack
from fftmoe.records.wire import unpack_header as unpack_header
from fftmoe.records.wire import unpack_plan as unpack_plan
from fftmoe.records.wire import unpack_update as unpack_update
