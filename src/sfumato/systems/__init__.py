"""Systems of several models, each a recipe of stages: trained, resumed and evaluated together."""
