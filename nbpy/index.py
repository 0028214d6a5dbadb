# %% [markdown]
# # verdiff
# > test

# %%
#| hide
1 + 1
