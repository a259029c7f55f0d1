"""Defines recipes: their sections, the rules across sections, and how a YAML file with overrides becomes one `Recipe`.

Nothing here loads data or models. Only `setup` and `cli` import this package: they give plain values to all others.
"""

from fftmoe.config.budgets import BudgetSection as BudgetSection
from fftmoe.config.data import DataSection as DataSection
from fftmoe.config.evaluation import GenerationSection as GenerationSection
from fftmoe.config.fields import Section as Section
from fftmoe.config.head import HeadSection as HeadSection
from fftmoe.config.overrides import apply_override as apply_override
from fftmoe.config.overrides import parse_override as parse_override
from fftmoe.config.privacy import ExamplePrivacySection as ExamplePrivacySection
from fftmoe.config.privacy import PrivacySection as PrivacySection
from fftmoe.config.read import complete_common as complete_common
from fftmoe.config.read import complete_recipe as complete_recipe
from fftmoe.config.read import complete_values as complete_values
from fftmoe.config.read import find_recipe as find_recipe
from fftmoe.config.read import load_recipe as load_recipe
from fftmoe.config.read import load_whole as load_whole
from fftmoe.config.read import parse_recipe as parse_recipe
from fftmoe.config.read import read_recipe as read_recipe
from fftmoe.config.read import recipe_folder as recipe_folder
from fftmoe.config.schema import Recipe as Recipe
