from odescale.networks.language_model import LanguageModel as LanguageModel
from odescale.training.grammar import Grammar as Grammar
from odescale.training.language import language as language
from odescale.training.source_text import SourceText as SourceText
from odescale.training.source_text import source_text as source_text
from odescale.training.source_text import text_of as text_of
