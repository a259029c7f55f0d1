"""Recipes: strict YAML, `--set a.b=c` overrides, and messages that name the nearest valid key."""

from fftmoe.config.data import Data as Data
from fftmoe.config.evaluation import Generation as Generation
from fftmoe.config.head import Head as Head
from fftmoe.config.overrides import apply_override as apply_override
from fftmoe.config.overrides import parse_override as parse_override
from fftmoe.config.read import find_recipe as find_recipe
from fftmoe.config.read import load_recipe as load_recipe
from fftmoe.config.read import parse_recipe as parse_recipe
from fftmoe.config.read import read_recipe as read_recipe
from fftmoe.config.read import recipe_folder as recipe_folder
from fftmoe.config.schema import METHODS as METHODS
from fftmoe.config.schema import BudgetSection as BudgetSection
from fftmoe.config.schema import Recipe as Recipe
from fftmoe.config.schema import Section as Section
