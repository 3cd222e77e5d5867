import streamlit as st

st.write("This page is app.py.")
